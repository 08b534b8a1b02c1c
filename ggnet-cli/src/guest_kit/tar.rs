//! A kit as a tar archive (POSIX ustar): files only, owned by root, the same bytes on every host.
//!
//! No folders: tar creates missing ones, and a folder in the archive would change mode and owner of an existing one.

use super::Kit;

const BLOCK: usize = 512;
/// The modification time of all files: 2026-01-01. With an older time the initramfs of a kernel would look newer than its sources.
const CHANGED: u64 = 1_767_225_600;

/// The archive.
pub fn archive(kit: &Kit) -> Vec<u8> {
    let mut out = Vec::new();
    for file in &kit.files {
        out.extend_from_slice(&header(file.path, file.text.len()));
        out.extend_from_slice(file.text.as_bytes());
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    // Two empty blocks end an archive.
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

/// The header of a file. The paths of a kit fit into the 100 bytes of a name (tested by `every_path_fits`).
fn header(path: &str, size: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{CHANGED:011o}\0").as_bytes());
    // The checksum is computed with spaces in its own field.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(265, b"root");
    put(297, b"root");
    let sum: u32 = block.iter().copied().map(u32::from).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_fits() {
        assert!(Kit::debian().files.iter().all(|f| f.path.len() < 100));
    }
}
