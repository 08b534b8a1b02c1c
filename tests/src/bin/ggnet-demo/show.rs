//! What the demo prints: colours and a moving progress bar on a terminal, plain lines elsewhere. Counts the claims.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Instant;

/// The screen.
pub struct Show {
    tty: bool,
    began: Instant,
    steps: u32,
    held: u32,
    failed: Vec<String>,
    quarter: u16,
}

impl Show {
    pub fn new() -> Self {
        let tty = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { tty, began: Instant::now(), steps: 0, held: 0, failed: Vec::new(), quarter: 0 }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.tty { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn title(&self, text: &str) {
        println!("{}", self.paint("1", text));
    }

    /// The next part of the show.
    pub fn step(&mut self, text: &str) {
        self.steps += 1;
        let at = self.began.elapsed().as_secs();
        println!(
            "\n{} {}",
            self.paint("1;36", &format!("{}. {text}", self.steps)),
            self.paint("2", &format!("[{at} s]"))
        );
    }

    pub fn line(&self, text: &str) {
        for line in text.lines() {
            println!("   {line}");
        }
    }

    /// Something that one types, or sends.
    pub fn command(&self, text: &str) {
        println!("   {}", self.paint("33", &format!("$ {text}")));
    }

    /// Something that one types in a machine.
    pub fn guest_command(&self, name: &str, text: &str) {
        println!("   {}", self.paint("33", &format!("{name}# {text}")));
    }

    /// One stage of a boot.
    pub fn stage(&self, seconds: f64, name: &str, text: &str) {
        println!("   {} {name:<8} {text}", self.paint("2", &format!("{seconds:7.1} s")));
    }

    /// Something that must be true, and was looked at just now.
    pub fn claim(&mut self, text: &str, holds: bool) {
        if holds {
            self.held += 1;
            println!("   {} {text}", self.paint("32", "✔"));
        } else {
            self.failed.push(text.to_owned());
            println!("   {} NOT TRUE: {text}", self.paint("31", "✘"));
        }
    }

    /// How far something is, in per mille.
    pub fn progress(&mut self, per_mille: u16) {
        if self.tty {
            let full = usize::from(per_mille.min(1000)) * 40 / 1000;
            let (done, rest) = ("█".repeat(full), "░".repeat(40 - full));
            print!("\r   {done}{rest} {:3} %", per_mille / 10);
            // A terminal that is gone shows nothing: no reason to end.
            let _ = std::io::stdout().flush();
        } else if per_mille / 250 != self.quarter {
            self.quarter = per_mille / 250;
            println!("   {} %", per_mille / 10);
        }
    }

    pub fn progress_done(&mut self) {
        self.progress(1000);
        if self.tty {
            println!();
        }
        self.quarter = 0;
    }

    /// The last words, and the exit code.
    pub fn verdict(&self) -> ExitCode {
        let at = self.began.elapsed().as_secs();
        if self.failed.is_empty() {
            println!(
                "\n{}",
                self.paint("1;32", &format!("All {} claims were checked and hold. ({at} s)", self.held))
            );
            return ExitCode::SUCCESS;
        }
        println!(
            "\n{}",
            self.paint(
                "1;31",
                &format!(
                    "{} of {} claims do not hold:",
                    self.failed.len(),
                    self.held as usize + self.failed.len()
                )
            )
        );
        for text in &self.failed {
            println!("   {text}");
        }
        ExitCode::FAILURE
    }

    /// It could not be shown to its end.
    pub fn broken(&self, e: &anyhow::Error) -> ExitCode {
        // What was printed so far comes first, also through a pipe.
        let _ = std::io::stdout().flush();
        eprintln!("\n{} {e:#}", self.paint("1;31", "The demo failed:"));
        ExitCode::FAILURE
    }
}

/// 3.4 MiB.
pub fn size(bytes: u64) -> String {
    let mib = bytes / (1 << 20);
    if mib >= 10 {
        return format!("{mib} MiB");
    }
    let tenths = (bytes % (1 << 20)) * 10 / (1 << 20);
    if mib > 0 { format!("{mib}.{tenths} MiB") } else { format!("{} KiB", bytes / 1024) }
}
