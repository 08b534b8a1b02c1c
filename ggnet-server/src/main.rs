//! The binary `ggnet-server`: the server with the backends of `ggnet-backends`.

use std::process::ExitCode;

use ggnet_core::registry::Registry;

fn main() -> ExitCode {
    let mut registry = Registry::new();
    ggnet_backends::register(&mut registry);
    ggnet_server::main(&registry)
}
