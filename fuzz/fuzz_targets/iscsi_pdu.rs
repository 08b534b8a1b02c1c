//! See `ggnet_iscsi::fuzzing::pdu`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ggnet_iscsi::fuzzing::pdu(input));
