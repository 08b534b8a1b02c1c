//! See `ggnet_iscsi::fuzzing::login`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ggnet_iscsi::fuzzing::login(input));
