//! The built-in target as a process: see [`ggnet_benches::target`].

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    ggnet_benches::target::serve(std::env::args().skip(1)).await
}
