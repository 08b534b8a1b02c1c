//! See `ggnet_iscsi::fuzzing::session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ggnet_iscsi::fuzzing::session(input));
