//! The output of commands: tables for people, JSON for programs, notes.
//!
//! Results go to stdout; notes, progress, questions and errors go to stderr. JSON is the server's response: an object, an array for a list,
//! one object per line for a stream. If the reader of stdout has exited, the command ends without an error.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::json;

use crate::failure::{Failure, Result};

/// Fewer columns than any real terminal has.
const NARROW: u16 = 20;

/// The format of results and errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables, for people.
    #[default]
    Table,
    /// JSON, for programs.
    Json,
}

/// How to print.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    format: Format,
    quiet: bool,
    color: bool,
}

/// How good a value is; decides the colour of its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// All is well.
    Good,
    /// In progress, or needs attention.
    Middling,
    /// Something is wrong.
    Bad,
    /// Neutral.
    Plain,
}

/// A cell of a table.
pub struct Field(String, Mood);

impl Field {
    /// With a mood.
    pub fn with(text: impl Into<String>, mood: Mood) -> Self {
        Self(text.into(), mood)
    }
}

impl<T: Into<String>> From<T> for Field {
    fn from(text: T) -> Self {
        Self(text.into(), Mood::Plain)
    }
}

impl Output {
    /// How to print, from the global options.
    pub fn new(format: Format, quiet: bool, no_color: bool) -> Self {
        let wanted = !no_color && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { format, quiet, color: wanted && io::stdout().is_terminal() }
    }

    /// Whether results are JSON.
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Whether to show a progress bar: only on a terminal.
    pub fn shows_progress(self) -> bool {
        !self.quiet && !self.is_json() && io::stderr().is_terminal()
    }

    /// Prints a list: one row per item under `header`.
    pub fn list<T: Serialize>(
        self,
        header: &[&str],
        items: &[T],
        row: impl Fn(&T) -> Vec<Field>,
    ) -> Result<()> {
        if self.is_json() {
            return self.json(&items);
        }
        if items.is_empty() {
            self.note("Nothing found");
            return Ok(());
        }
        let mut table = self.table();
        let cell = |h: &&str| Cell::new(h.to_uppercase());
        table.set_header(
            header.iter().map(|h| if self.color { cell(h).add_attribute(Attribute::Bold) } else { cell(h) }),
        );
        for item in items {
            table.add_row(row(item).into_iter().map(|f| self.cell(f)));
        }
        print(&layout(table))
    }

    /// Prints one object: one line per property.
    pub fn one<T: Serialize>(self, value: &T, rows: Vec<(&str, Field)>) -> Result<()> {
        if self.is_json() {
            return self.json(value);
        }
        let mut table = self.table();
        // A name or path that wraps cannot be copied.
        table.set_content_arrangement(ContentArrangement::Disabled);
        for (name, field) in rows {
            table.add_row([Cell::new(format!("{name}:")), self.cell(field)]);
        }
        print(&layout(table))
    }

    /// Prints what was done: `{"removed": "pc-1"}`, or a sentence.
    pub fn done(self, what: &str, subject: &str, sentence: &str) -> Result<()> {
        match self.format {
            Format::Json => self.json(&json!({ what: subject })),
            Format::Table if self.quiet => Ok(()),
            Format::Table => print(sentence),
        }
    }

    /// Prints a text unchanged: a boot script, a completion script.
    pub fn text(self, text: &str) -> Result<()> {
        print(text.trim_end_matches('\n'))
    }

    /// Prints a value as indented JSON.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| Failure::refused(format!("Writing JSON: {e}")))?;
        print(&text)
    }

    /// Prints a value of a stream as one line of JSON.
    pub fn json_line<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        let text =
            serde_json::to_string(value).map_err(|e| Failure::refused(format!("Writing JSON: {e}")))?;
        print(&text)
    }

    /// Prints a note on stderr; nothing if quiet or if the format is JSON.
    pub fn note(self, text: &str) {
        if !self.quiet && !self.is_json() {
            complain(text);
        }
    }

    fn table(self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // A serial console reports a width of 0 columns: then print long lines instead of one character per line.
        if table.width().is_none_or(|columns| columns >= NARROW) {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        if !self.color {
            // Drops the styles but keeps the terminal's width.
            let width = table.width();
            table.force_no_tty();
            if let Some(width) = width {
                table.set_width(width);
            }
        }
        table
    }

    fn cell(self, Field(text, mood): Field) -> Cell {
        let cell = Cell::new(if text.is_empty() { "-".to_owned() } else { printable(&text) });
        match mood {
            _ if !self.color => cell,
            Mood::Good => cell.fg(Color::Green),
            Mood::Middling => cell.fg(Color::Yellow),
            Mood::Bad => cell.fg(Color::Red),
            Mood::Plain => cell,
        }
    }
}

/// Left-aligned, two spaces between columns.
fn layout(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Prints a line on stdout and flushes it, so that the reader of a pipe gets it at once.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|e| Failure::io("Writing to stdout", &e))
}

/// Prints a line on stderr; a write error is ignored.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Reports a failure on stderr: as text, or as one problem document.
pub fn report(failure: &Failure, format: Format) {
    if failure.is_reader_gone() {
        return;
    }
    match format {
        Format::Table => complain(&failure.to_string()),
        Format::Json => complain(&failure.document().to_string()),
    }
}

/// Prints a question on stderr; the answer is typed on the same line.
pub fn ask(question: &str) -> Result<()> {
    let mut stderr = io::stderr();
    write!(stderr, "{question}").and_then(|()| stderr.flush()).map_err(|e| Failure::io("Asking", &e))
}

/// Replaces control characters: data that a machine reported must not control the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Asks before an action that cannot be undone. Without `--yes` and without a terminal, refuses it.
pub fn confirm(yes: bool, question: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::input("--yes", format!("{question} Cannot ask: there is no terminal"))
            .hint("Add --yes to confirm"));
    }
    ask(&format!("{question} [y/N] "))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|e| Failure::io("Reading the answer", &e))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::input("--yes", "Nothing was changed: the answer was not yes")),
    }
}

/// `12.0 GiB`.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_of_machines_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(size(3 << 30), "3.00 GiB");
    }
}
