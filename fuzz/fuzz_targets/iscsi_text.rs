//! See `iscsi::fuzzing::text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ggnet_backends::iscsi::fuzzing::text(input));
