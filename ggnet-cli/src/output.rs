//! What a command prints: tables for people, JSON for programs, notes for whoever watches.
//!
//! Results go to stdout; notes, progress, questions and errors to stderr. JSON is the server's answer: an object, an array for a list, one
//! object a line for a stream. A result that cannot be written because its reader has gone ends the command quietly.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::json;

use crate::failure::{Failure, Result};

/// Fewer columns than any terminal of a person's.
const NARROW: u16 = 20;

/// The form of results and errors.
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

/// A cell whose colour says how well the thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should be.
    Good,
    /// On its way, or needs a look.
    Middling,
    /// Not as it should be.
    Bad,
    /// Nothing to say.
    Plain,
}

/// A table's cell.
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

    /// Whether a moving progress bar has somebody to watch it.
    pub fn shows_progress(self) -> bool {
        !self.quiet && !self.is_json() && io::stderr().is_terminal()
    }

    /// A list: one row each under `header`.
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
            self.note("Nothing there");
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

    /// One thing: a line for each of its properties.
    pub fn one<T: Serialize>(self, value: &T, rows: Vec<(&str, Field)>) -> Result<()> {
        if self.is_json() {
            return self.json(value);
        }
        let mut table = self.table();
        // A name or a path that is cut in two cannot be copied.
        table.set_content_arrangement(ContentArrangement::Disabled);
        for (name, field) in rows {
            table.add_row([Cell::new(format!("{name}:")), self.cell(field)]);
        }
        print(&layout(table))
    }

    /// A thing that is now so: `{"removed": "pc-1"}`, or a sentence.
    pub fn done(self, what: &str, subject: &str, sentence: &str) -> Result<()> {
        match self.format {
            Format::Json => self.json(&json!({ what: subject })),
            Format::Table if self.quiet => Ok(()),
            Format::Table => print(sentence),
        }
    }

    /// A text as it is: a script, a completion.
    pub fn text(self, text: &str) -> Result<()> {
        print(text.trim_end_matches('\n'))
    }

    /// A value as JSON, indented for people who look.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| Failure::refused(format!("Writing JSON: {e}")))?;
        print(&text)
    }

    /// A value of a stream as JSON: one line.
    pub fn json_line<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        let text =
            serde_json::to_string(value).map_err(|e| Failure::refused(format!("Writing JSON: {e}")))?;
        print(&text)
    }

    /// Something by the way, on stderr; not when quiet, and never beside JSON.
    pub fn note(self, text: &str) {
        if !self.quiet && !self.is_json() {
            complain(text);
        }
    }

    fn table(self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // A serial console says that it has no columns at all: better long lines than a letter in each.
        if table.width().is_none_or(|columns| columns >= NARROW) {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        if !self.color {
            // Keeps the terminal's width and drops the styles.
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

/// Flush left, two blanks between columns.
fn layout(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A line of text on stdout, flushed: whoever reads a pipe sees it when it happens.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|e| Failure::io("Writing to stdout", &e))
}

/// A line on stderr; lost where nobody can read it.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Reports a failure on stderr: for people, or as one problem document.
pub fn report(failure: &Failure, format: Format) {
    if failure.is_reader_gone() {
        return;
    }
    match format {
        Format::Table => complain(&failure.to_string()),
        Format::Json => complain(&failure.document().to_string()),
    }
}

/// A question on stderr, whose answer comes on the same line.
pub fn ask(question: &str) -> Result<()> {
    let mut stderr = io::stderr();
    write!(stderr, "{question}").and_then(|()| stderr.flush()).map_err(|e| Failure::io("Asking", &e))
}

/// What a machine claimed of itself must not steer the terminal that shows it.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Asks before something that cannot be taken back. Without `--yes` and without a terminal to ask on it is refused.
pub fn confirm(yes: bool, question: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::input("--yes", format!("{question} There is no terminal to ask on"))
            .hint("Say --yes if that is what you want"));
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
