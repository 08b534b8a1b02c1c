//! The fuzz targets' properties in the ordinary test suite: the committed corpus and the regressions, then a fixed number of
//! mutations of them. The same inputs every time: the generator is seeded by a constant.
//!
//! What the coverage-guided runs add, and how to start them, is in docs/fuzzing.md.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::io;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use ggnet_backends::{bootfile::builtin, dhcp::proxy, external, helper_server};
use ggnet_core::testkit::tier::rounds;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Panics where a property does not hold for the input.
type Property = fn(&[u8]);

/// The targets, as fuzz/Cargo.toml names them, and how many mutations of each are run: a second or two in a debug build.
const TARGETS: [(&str, Property, usize); 9] = [
    ("dhcp_packet", proxy::fuzzing::packet, 10_000),
    ("external_line", external::fuzzing::line, 10_000),
    ("helper_request", helper_server::fuzzing::request, 10_000),
    ("iscsi_cdb", ggnet_iscsi::fuzzing::cdb, 2_000),
    ("iscsi_login", ggnet_iscsi::fuzzing::login, 10_000),
    ("iscsi_pdu", ggnet_iscsi::fuzzing::pdu, 2_000),
    ("iscsi_session", ggnet_iscsi::fuzzing::session, 1_000),
    ("iscsi_text", ggnet_iscsi::fuzzing::text, 10_000),
    ("tftp_packet", builtin::fuzzing::packet, 10_000),
];
/// The longest mutation; inputs of the corpus may be longer.
const MAX_LEN: usize = 4096;
/// What a committed corpus may take: everybody downloads it.
const MAX_FILES: usize = 100;
const MAX_BYTES: usize = 300 << 10;

#[test]
fn dhcp_packet_holds_on_its_corpus_and_near_it() {
    holds("dhcp_packet");
}

#[test]
fn external_line_holds_on_its_corpus_and_near_it() {
    holds("external_line");
}

#[test]
fn helper_request_holds_on_its_corpus_and_near_it() {
    holds("helper_request");
}

#[test]
fn iscsi_cdb_holds_on_its_corpus_and_near_it() {
    holds("iscsi_cdb");
}

#[test]
fn iscsi_login_holds_on_its_corpus_and_near_it() {
    holds("iscsi_login");
}

#[test]
fn iscsi_pdu_holds_on_its_corpus_and_near_it() {
    holds("iscsi_pdu");
}

#[test]
fn iscsi_session_holds_on_its_corpus_and_near_it() {
    holds("iscsi_session");
}

#[test]
fn iscsi_text_holds_on_its_corpus_and_near_it() {
    holds("iscsi_text");
}

#[test]
fn tftp_packet_holds_on_its_corpus_and_near_it() {
    holds("tftp_packet");
}

#[test]
fn every_fuzz_target_is_one_of_these() {
    let mut found: Vec<String> =
        fs::read_dir(folder("fuzz_targets")).unwrap().map(|f| stem(&f.unwrap().path())).collect();
    found.sort();
    assert_eq!(found, TARGETS.map(|(name, ..)| name), "fuzz/fuzz_targets and this test differ");
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    for name in found {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml does not name {name}");
    }
}

#[test]
fn a_corpus_that_is_missing_or_empty_is_an_error() {
    assert!(inputs(Path::new("no/such/folder")).is_err());
    let empty = tempfile::tempdir().unwrap();
    assert!(inputs(empty.path()).is_err());
}

fn folder(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(below)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

fn holds(name: &str) {
    let (_, property, mutations) = *TARGETS.iter().find(|(n, ..)| *n == name).unwrap();
    let mut corpus =
        inputs(&folder("corpus").join(name)).unwrap_or_else(|e| panic!("the corpus of {name}: {e}"));
    let bytes: usize = corpus.iter().map(|(_, input)| input.len()).sum();
    assert!(corpus.len() <= MAX_FILES && bytes <= MAX_BYTES, "{} files of {bytes} bytes", corpus.len());
    // A target that never failed has no folder of regressions.
    let regressions = folder("regressions").join(name);
    if regressions.exists() {
        corpus.extend(inputs(&regressions).unwrap_or_else(|e| panic!("the regressions of {name}: {e}")));
    }
    for (path, input) in &corpus {
        run(property, input, &path.display().to_string());
    }
    let mut rng = StdRng::seed_from_u64(0x6767_6e65_745f_667a);
    for i in 0..rounds(mutations, mutations * 20) {
        let mut input = corpus[rng.random_range(0..corpus.len())].1.clone();
        for _ in 0..rng.random_range(1..6) {
            mutate(&mut input, &corpus, &mut rng);
        }
        input.truncate(MAX_LEN);
        run(property, &input, &format!("mutation {i}"));
    }
}

/// The files of a folder by name. None of them is an error, as it is none that could be read.
fn inputs(folder: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut paths = fs::read_dir(folder)?.map(|f| f.map(|f| f.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    if paths.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the folder is empty"));
    }
    paths.into_iter().map(|path| fs::read(&path).map(|input| (path, input))).collect()
}

/// Runs one input; a failure names it so that it can become a regression.
fn run(property: Property, input: &[u8], what: &str) {
    if catch_unwind(|| property(input)).is_err() {
        let hex: String = input.iter().map(|b| format!("{b:02x}")).collect();
        panic!("{what} fails; as a file: xxd -r -p <<< {hex}");
    }
}

fn mutate(input: &mut Vec<u8>, corpus: &[(PathBuf, Vec<u8>)], rng: &mut StdRng) {
    if input.is_empty() {
        return input.push(rng.random());
    }
    let at = rng.random_range(0..input.len());
    let len = rng.random_range(1..=16).min(input.len() - at);
    match rng.random_range(0..8) {
        0 => input[at] ^= 1 << rng.random_range(0..8),
        1 => input[at] = rng.random(),
        2 => input[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
        3 => input[at] = input[at].wrapping_add(rng.random_range(1..=4)),
        4 => input.truncate(at),
        5 => drop(input.drain(at..at + len)),
        6 => {
            let again = input[at..at + len].to_vec();
            drop(input.splice(at..at, again));
        }
        _ => {
            let other = &corpus[rng.random_range(0..corpus.len())].1;
            let from = rng.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}
