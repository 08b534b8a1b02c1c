//! See `dhcp::proxy::fuzzing::packet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ggnet_backends::dhcp::proxy::fuzzing::packet(input));
