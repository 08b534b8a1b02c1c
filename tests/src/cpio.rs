//! An initramfs archive (cpio's "newc" format, as the kernel's `buffer-format.rst` has it), written as it goes.
//!
//! The kernel unpacks archives that stand one after the other over each other, so what is written here behind an existing
//! initramfs adds to it and replaces files of the same name. Everything belongs to root.

use std::io::{self, Write};

/// An archive on its way into `out`. Nothing is complete before [`finish`](Self::finish).
#[derive(Debug)]
pub struct Cpio<W> {
    out: W,
    written: usize,
    inode: u32,
}

impl<W: Write> Cpio<W> {
    /// An archive that begins at a multiple of four bytes of `out`.
    pub fn new(out: W) -> Self {
        Self { out, written: 0, inode: 0 }
    }

    /// A folder. Its parent must be there already, here or in an archive before.
    ///
    /// # Errors
    /// As `out` has them.
    pub fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, 0o040_755, &[])
    }

    /// A file that may be executed.
    ///
    /// # Errors
    /// As `out` has them; the file has 4 GiB or more.
    pub fn program(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.entry(name, 0o100_755, content)
    }

    /// Ends the archive and gives back what it was written to.
    ///
    /// # Errors
    /// As `out` has them.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let len = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name_len = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        // Magic; then inode, mode, owner, group, links, time, length, four device numbers, length of the name, checksum.
        let mut header = "070701".to_owned();
        for field in [self.inode, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0] {
            header += &format!("{field:08X}");
        }
        self.padded(&[header.as_bytes(), name.as_bytes(), b"\0"].concat())?;
        self.padded(content)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        let fill = self.written.next_multiple_of(4) - self.written;
        self.written += fill;
        self.out.write_all(&[0; 3][..fill])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_looks_as_the_format_says() {
        let mut cpio = Cpio::new(Vec::new());
        cpio.folder("a").unwrap();
        cpio.program("a/b", b"12345").unwrap();
        let bytes = cpio.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        // Headers of 110 bytes, names and contents filled up to four bytes.
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000041ED");
        assert_eq!((bytes[110], bytes[111], &bytes[112..118]), (b'a', 0, &b"070701"[..]));
        assert_eq!(&bytes[112 + 54..112 + 62], b"00000005");
        assert_eq!(&bytes[112 + 110..112 + 124], b"a/b\0\0\x0012345\0\0\0");
        assert!(bytes.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
