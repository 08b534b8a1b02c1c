//! See `helper::fuzzing::request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ggnet_backends::helper::fuzzing::request(input));
