//! Which values from outside may be inserted into an iPXE script.
//!
//! iPXE has neither quotes nor an escape character. It reads a script as follows:
//! * a line ends at LF (a CR before it is dropped); a `\` as the line's last character joins the next line to it;
//! * a line is cut into words at white space; `"` and `'` are ordinary characters;
//! * a word that starts with `#` begins a comment; the words `||`, `&&` and `;`, alone, begin another command;
//! * then `${name}` is expanded in each word, innermost first, and what came out is expanded again until nothing is left to expand;
//!   an expanded value is never cut into words again;
//! * a word that starts with `-` is an option while no other word came before it.
//!
//! So nothing can be escaped, only rejected or replaced. Text for people goes through [`text`], which replaces; names, addresses and
//! secrets go through [`word`], which rejects. Invariant: for any surrounding text in the template, the output of both starts no command,
//! ends no line, opens no comment and expands no setting.

use crate::error::{Error, Result};

/// Replaces everything that iPXE would interpret as syntax; for text that people read on a screen.
///
/// Control characters, everything outside ASCII, `$`, and a backslash at the end become `?`; braces become parentheses; white
/// space becomes a space; a `#` at the start of a word, and a word of nothing but `|`, `&` and `;`, become `?`. It is the
/// autoescape function of the `.ipxe` templates, and changes nothing in what [`word`] accepts.
#[must_use]
pub fn text(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut word = String::new();
    for c in value.chars() {
        match c {
            ' ' | '\t' => {
                flush(&mut word, &mut out);
                out.push(' ');
            }
            '{' => word.push('('),
            '}' => word.push(')'),
            '$' => word.push('?'),
            c if c.is_ascii_graphic() => word.push(c),
            _ => word.push('?'),
        }
    }
    flush(&mut word, &mut out);
    if out.ends_with('\\') {
        out.pop();
        out.push('?');
    }
    out
}

/// Moves a finished word to the output, made harmless.
fn flush(word: &mut String, out: &mut String) {
    if is_operator(word) {
        out.extend(word.chars().map(|_| '?'));
    } else if let Some(rest) = word.strip_prefix('#') {
        out.push('?');
        out.push_str(rest);
    } else {
        out.push_str(word);
    }
    word.clear();
}

/// A single `|` counts, because it could be next to another one in the template.
fn is_operator(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b"|&;".contains(&b))
}

/// Checks a value that must reach iPXE unchanged, as one word: names, addresses, URLs, credentials.
///
/// Errors: `Invalid`, naming `what` and the character (never the value: it may be a secret).
pub fn word<'a>(what: &str, value: &'a str) -> Result<&'a str> {
    let bad = |why: String| {
        Err(Error::invalid("boot_text", format!("The {what} cannot be used in an iPXE script: {why}")))
    };
    if value.is_empty() {
        return bad("it is empty".to_owned());
    }
    if value.len() > 1024 {
        return bad("it is longer than 1024 bytes".to_owned());
    }
    if let Some(c) = value.chars().find(|c| !c.is_ascii_graphic() || "$\\{}".contains(*c)) {
        return bad(format!("character {c:?} is not allowed"));
    }
    if is_operator(value) {
        return bad("it is a command separator".to_owned());
    }
    if value.starts_with(['#', '-']) {
        return bad("it starts like a comment or an option".to_owned());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::boot_text::ipxe::lines;

    #[test]
    fn plain_text_stays_as_it_is() {
        for same in
            ["", "Room 5, desk #", "a-b_c.d (e) [f]", "it's \"quoted\"", "a&b=c|d;e", "50 % of 10 EUR"]
        {
            let want = if same.ends_with('#') { "Room 5, desk ?" } else { same };
            assert_eq!(text(same), want);
        }
    }

    #[test]
    fn syntax_is_replaced() {
        for (from, to) in [
            ("a\nshell", "a?shell"),
            ("a\r\n:label", "a??:label"),
            ("a || shell", "a ?? shell"),
            ("a && b ; c", "a ?? b ? c"),
            ("||", "??"),
            ("${password}", "?(password)"),
            ("a # b", "a ? b"),
            ("#5", "?5"),
            ("Saal Grün", "Saal Gr?n"),
            ("a\tb\u{b}c\u{0}", "a b?c?"),
            ("end\\", "end?"),
            ("C:\\x", "C:\\x"),
        ] {
            assert_eq!(text(from), to, "{from:?}");
        }
    }

    #[test]
    fn words_are_refused_not_changed() {
        for good in ["iqn.2026-11.local:x", "http://10.0.0.1/a?b=c&d=e#f", "Ab0", "52-54-00-12-34-56", "a\"b"]
        {
            assert_eq!(word("name", good).unwrap(), good);
            assert_eq!(text(good), good);
        }
        for bad in
            ["", "a b", "a\n", "ä", "$x", "${x}", "a\\", "a}", "||", ";", "-x", "--help", "#x", "a\u{0}"]
        {
            let e = word("secret", bad).unwrap_err();
            assert_eq!(e.field(), Some("boot_text"), "{bad:?}");
            assert!(e.message().contains("secret"));
        }
    }

    fn nasty() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("||".to_owned()),
            Just("&&".to_owned()),
            Just("|".to_owned()),
            Just(";".to_owned()),
            Just("\n".to_owned()),
            Just("\r".to_owned()),
            Just("\\".to_owned()),
            Just("${errno}".to_owned()),
            Just("$".to_owned()),
            Just("{".to_owned()),
            Just("#".to_owned()),
            Just(" ".to_owned()),
            Just("shell".to_owned()),
            Just(":x".to_owned()),
            "\\PC{0,4}",
        ];
        prop::collection::vec(piece, 0..12).prop_map(|v| v.concat())
    }

    proptest! {
        #[test]
        fn no_value_leaves_its_place(a in nasty(), b in nasty()) {
            let (a, b) = (text(&a), text(&b));
            // Next to each other, before the end of a line, and after a dollar sign of the template.
            let script = format!("#!ipxe\necho x{a}{b}\necho ${a} y {b}\nexit 1\n");
            let read = lines::read(&script);
            prop_assert_eq!(read.len(), 3, "{}", script);
            for line in &read {
                prop_assert!(line.label.is_none());
                prop_assert_eq!(line.commands.len(), 1, "{}", script);
                prop_assert!(line.commands[0].words.iter().all(|w| !w.contains("${")), "{}", script);
            }
            prop_assert!(read[1].commands[0].words.iter().any(|w| w == "y"), "{}", script);
            prop_assert_eq!(&read[2].commands[0].words, &["exit", "1"]);
        }

        #[test]
        fn text_is_idempotent(a in nasty()) {
            prop_assert_eq!(text(&text(&a)), text(&a));
        }

        #[test]
        fn text_leaves_words_alone(a in nasty()) {
            if word("x", &a).is_ok() {
                prop_assert_eq!(text(&a), a);
            }
        }
    }
}
