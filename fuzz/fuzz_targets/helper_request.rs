//! See `helper_server::fuzzing::request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ggnet_backends::helper_server::fuzzing::request(input));
