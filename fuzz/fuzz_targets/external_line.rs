//! See `external::fuzzing::line`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ggnet_backends::external::fuzzing::line(input));
