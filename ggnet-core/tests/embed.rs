//! Runs the example of an embedder's program.

#[allow(
    clippy::disallowed_methods,
    dead_code,
    reason = "the example is compiled as a program of its own; here it is a module"
)]
#[path = "../examples/embed.rs"]
mod embed;

#[test]
fn the_embedding_example_runs_to_its_end() {
    embed::main().unwrap();
}
