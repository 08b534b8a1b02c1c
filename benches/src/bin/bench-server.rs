//! `ggnet-server` under another name, so that `cargo bench` builds it, optimised, before it measures it.

use std::process::ExitCode;

use ggnet_core::registry::Registry;

fn main() -> ExitCode {
    let mut registry = Registry::new();
    ggnet_backends::register(&mut registry);
    ggnet_server::main(&registry)
}
