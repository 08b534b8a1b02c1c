//! The binary `ggnet-server`: our backends and nothing else.

use std::process::ExitCode;

use ggnet_core::registry::Registry;

fn main() -> ExitCode {
    let mut registry = Registry::new();
    ggnet_backends::register(&mut registry);
    ggnet_server::main(&registry)
}
