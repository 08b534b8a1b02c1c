//! [`Invocation`]: which program to run, with what, and how much it may take.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

/// Called with each line of stdout as it comes (ended by `\n` or `\r`, the end stripped); from the task that runs the program.
pub type LineSink = Arc<dyn Fn(&str) + Send + Sync>;

/// One argument.
///
/// A secret has no place in an argv (every user of the host can read it): hand it over by stdin. [`Arg::hidden`] is for what is
/// merely private, such as a user's name, and keeps it out of logs and errors.
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

    /// What may be shown of it: control characters escaped, cut to 300 characters.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.hidden {
            return "<hidden>".to_owned();
        }
        shown(&self.value.to_string_lossy())
    }
}

/// A text that is not ours, as logs and errors may show it: control characters escaped, cut to 300 characters.
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

/// What the program reads on stdin.
#[derive(Clone, Default)]
pub enum Stdin {
    /// Nothing: `/dev/null`.
    #[default]
    Empty,
    /// These bytes, then the end. Never shown: secrets go here.
    Bytes(Bytes),
    /// An open file, which the program also reaches as `/proc/self/fd/0`: the file that was checked is the file that is read, and
    /// its name, however hostile, is never parsed by the program.
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

/// What the kernel lets the program take; `None` leaves what we have ourselves. No core file is ever written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of address space (`RLIMIT_AS`).
    pub address_space: Option<u64>,
    /// Seconds of processor time (`RLIMIT_CPU`): SIGXCPU at the limit, SIGKILL at twice the limit.
    pub cpu_seconds: Option<u64>,
    /// Size in bytes of the largest file that it may write (`RLIMIT_FSIZE`); pipes do not count.
    pub file_size: Option<u64>,
}

/// A program, its arguments and its limits.
#[derive(Clone)]
pub struct Invocation {
    /// A path, or a name that is looked up in the runner's search path.
    pub program: PathBuf,
    /// What to tell an operator when it is missing: `apt-get install qemu-utils`.
    pub install_hint: String,
    /// Its arguments, without the program's name.
    pub args: Vec<Arg>,
    /// What it reads.
    pub stdin: Stdin,
    /// The folder that it runs in; `/` when none is named.
    pub current_dir: Option<PathBuf>,
    /// How long it may run before its group is killed.
    pub time_limit: Duration,
    /// What it may take.
    pub limits: Limits,
    /// Runs it behind everything else (`nice -n 10`, `ionice -c 2 -n 7`): long work must not slow the disks that clients boot from.
    pub background: bool,
    /// How many bytes of stdout are kept; the rest is read and dropped.
    pub stdout_limit: usize,
    /// Who is told of each line of stdout.
    pub on_line: Option<LineSink>,
}

impl Invocation {
    /// `program` with no arguments, a minute's time, 1 MiB of stdout kept and no limits.
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

    /// Sets what it reads.
    #[must_use]
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    /// Sets the folder that it runs in.
    #[must_use]
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.current_dir = Some(dir.into());
        self
    }

    /// Sets how long it may run.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Sets what it may take.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Runs it behind everything else.
    #[must_use]
    pub fn in_background(mut self) -> Self {
        self.background = true;
        self
    }

    /// Sets who is told of each line of stdout.
    #[must_use]
    pub fn on_line(mut self, sink: LineSink) -> Self {
        self.on_line = Some(sink);
        self
    }

    /// The program and its arguments as logs and errors may show them; the programs that set limits are left out.
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
