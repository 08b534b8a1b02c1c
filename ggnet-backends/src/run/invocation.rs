//! [`Invocation`]: a program to run, its input and its limits.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

/// Called with each line of stdout as it arrives (terminated by `\n` or `\r`, which is removed), from the task that runs the program.
pub type LineSink = Arc<dyn Fn(&str) + Send + Sync>;

/// One argument.
///
/// A secret must not be in an argv (every user of the host can read it): pass it through stdin. [`Arg::hidden`] is for private data, such
/// as a user's name, and keeps it out of logs and errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Arg {
    value: OsString,
    hidden: bool,
}

impl Arg {
    /// An argument that logs and errors show.
    pub fn plain(value: impl Into<OsString>) -> Self {
        Self { value: value.into(), hidden: false }
    }

    /// An argument that logs and errors show as `<hidden>`.
    pub fn hidden(value: impl Into<OsString>) -> Self {
        Self { value: value.into(), hidden: true }
    }

    /// The argument itself.
    #[must_use]
    pub fn value(&self) -> &OsStr {
        &self.value
    }

    /// The argument as it may be shown: control characters escaped, truncated to 300 characters.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.hidden {
            return "<hidden>".to_owned();
        }
        shown(&self.value.to_string_lossy())
    }
}

/// Formats a text from outside for logs and errors: control characters escaped, truncated to 300 characters.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == 300 {
            shown.push('…');
            break;
        }
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

impl fmt::Debug for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shown())
    }
}

/// The program's stdin.
#[derive(Clone, Default)]
pub enum Stdin {
    /// Nothing: `/dev/null`.
    #[default]
    Empty,
    /// These bytes, then the end of the input. Never shown: secrets go here.
    Bytes(Bytes),
    /// An open file, which the program can also open as `/proc/self/fd/0`: the file that was checked is the file that is read, and its
    /// name, however hostile, is never parsed by the program.
    File(Arc<File>),
}

impl fmt::Debug for Stdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty"),
            Self::Bytes(b) => write!(f, "{} bytes", b.len()),
            Self::File(_) => f.write_str("an open file"),
        }
    }
}

/// The resource limits of the program; `None` keeps our own limit. A core file is never written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Address space in bytes (`RLIMIT_AS`).
    pub address_space: Option<u64>,
    /// CPU time in seconds (`RLIMIT_CPU`): SIGXCPU at the limit, SIGKILL at twice the limit.
    pub cpu_seconds: Option<u64>,
    /// Maximum size in bytes of a file that it writes (`RLIMIT_FSIZE`); pipes do not count.
    pub file_size: Option<u64>,
}

/// A program with its arguments and limits.
#[derive(Clone)]
pub struct Invocation {
    /// A path, or a name that is looked up in the runner's search path.
    pub program: PathBuf,
    /// The hint for the operator if it is missing: `apt-get install qemu-utils`.
    pub install_hint: String,
    /// Its arguments, without the program's name.
    pub args: Vec<Arg>,
    /// Its stdin.
    pub stdin: Stdin,
    /// Its working folder; `/` by default.
    pub current_dir: Option<PathBuf>,
    /// Time limit, after which its group is killed.
    pub time_limit: Duration,
    /// Its resource limits.
    pub limits: Limits,
    /// Runs it with low priority (`nice -n 10`, `ionice -c 2 -n 7`): long work must not slow down the disks of clients.
    pub background: bool,
    /// Maximum number of bytes of stdout that are kept; the rest is read and dropped.
    pub stdout_limit: usize,
    /// The observer of each line of stdout.
    pub on_line: Option<LineSink>,
}

impl Invocation {
    /// `program` without arguments, with a time limit of one minute, 1 MiB of stdout and no other limits.
    pub fn new(program: impl Into<PathBuf>, install_hint: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            install_hint: install_hint.into(),
            args: Vec::new(),
            stdin: Stdin::Empty,
            current_dir: None,
            time_limit: Duration::from_secs(60),
            limits: Limits::default(),
            background: false,
            stdout_limit: 1 << 20,
            on_line: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, value: impl Into<OsString>) -> Self {
        self.args.push(Arg::plain(value));
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: Into<OsString>>(mut self, values: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(values.into_iter().map(Arg::plain));
        self
    }

    /// Adds an argument that logs and errors never show.
    #[must_use]
    pub fn hidden_arg(mut self, value: impl Into<OsString>) -> Self {
        self.args.push(Arg::hidden(value));
        self
    }

    /// Sets its stdin.
    #[must_use]
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    /// Sets its working folder.
    #[must_use]
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.current_dir = Some(dir.into());
        self
    }

    /// Sets its time limit.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Sets its resource limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Runs it with low priority.
    #[must_use]
    pub fn in_background(mut self) -> Self {
        self.background = true;
        self
    }

    /// Sets the observer of each line of stdout.
    #[must_use]
    pub fn on_line(mut self, sink: LineSink) -> Self {
        self.on_line = Some(sink);
        self
    }

    /// The program and its arguments as logs and errors may show them, without the programs that set limits.
    #[must_use]
    pub fn shown_argv(&self) -> Vec<String> {
        std::iter::once(Arg::plain(&self.program).shown()).chain(self.args.iter().map(Arg::shown)).collect()
    }
}

impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invocation")
            .field("argv", &self.shown_argv())
            .field("stdin", &self.stdin)
            .field("current_dir", &self.current_dir)
            .field("time_limit", &self.time_limit)
            .field("limits", &self.limits)
            .field("background", &self.background)
            .finish_non_exhaustive()
    }
}
