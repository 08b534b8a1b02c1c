//! See `bootfile::builtin::fuzzing::packet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ggnet_backends::bootfile::builtin::fuzzing::packet(input));
