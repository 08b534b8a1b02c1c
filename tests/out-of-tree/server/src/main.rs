//! GGnet's server with one backend more.

fn main() -> std::process::ExitCode {
    let mut registry = ggnet_core::registry::Registry::new();
    ggnet_backends::register(&mut registry);
    ethers_dhcp::register(&mut registry);
    ggnet_server::main(&registry)
}
