//! Boot text: everything that a machine without a disk reads before it has one.
//!
//! iPXE scripts (from Tera templates that an operator may override), Raspberry Pi configuration, the SAN URI, and what
//! keeps them honest: an escape for every interpolated value, a syntax validator that knows iPXE's commands, and
//! [`ipxe::inspect()`], which reads back what a script does by running it on a model of iPXE's interpreter.
//!
//! No I/O except reading override templates from a folder. Invariant: text that leaves here has passed the validator.

pub mod escape;
pub mod ipxe;
pub mod paths;
pub mod pi;
pub mod san;
pub mod templates;
pub mod url;

pub use san::{Host, SanUri};
pub use templates::{
    BootTemplates, ChainScript, DeclinedScript, FirstScript, MachineScript, Template, Timing, UnknownScript,
};
pub use url::BootUrl;
