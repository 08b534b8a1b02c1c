//! [`Cursor`]: a position in the order of events. Only the store that issued it can interpret it; for everyone else it is opaque text to
//! send back.
//!
//! Stores that number their events use [`Cursor::numbered`] and [`Cursor::number_within`]; another store may use any text of the allowed
//! form. A bare decimal number, which clients of earlier versions keep, is read as the event's number.

use std::{fmt, str::FromStr};

use crate::error::{Error, code};

/// The maximum number of characters of a cursor.
const LONGEST: usize = 100;
/// The prefix of the built-in form; the digit is its version.
const NUMBERED: &str = "e1-";
/// What a client should do that cannot continue from its cursor.
const FROM_THE_FIRST: &str = "To read from the oldest event that is still kept, leave `after` out. `newest=true` returns the newest ones";

/// The position after one event: 1 to 100 of `[A-Za-z0-9._~-]`, so that it can be used in a URL.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Cursor(String);

impl Cursor {
    /// The position after the event with this number; 0: before all events.
    #[must_use]
    pub fn numbered(number: u64) -> Self {
        Self(format!("{NUMBERED}{number:x}"))
    }

    /// The number that it was made from, for a store that has pruned its events up to number `forgotten` and whose newest event ever has
    /// number `newest`. 0 means "from the first that is kept", whatever was pruned.
    ///
    /// # Errors
    /// `Invalid`: another store's form. `NotFound`: events after it were pruned, or it comes from events that this store never had (an
    /// older database was restored).
    pub fn number_within(&self, forgotten: u64, newest: u64) -> Result<u64, Error> {
        let digits = self.0.strip_prefix(NUMBERED);
        // Exactly as it is issued: no sign, no leading zero, lower case.
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let number =
            number.filter(|number| Self::numbered(*number) == *self).ok_or_else(|| self.invalid())?;
        if number > newest {
            let message = format!(
                "There is no event at the cursor {self}: it comes from events that are not in this database"
            );
            return Err(Error::new(code::cursor_unknown(self), message)
                .with_field("after")
                .with_hint(FROM_THE_FIRST));
        }
        if number != 0 && number < forgotten {
            let message = format!("Events after the cursor {self} were old and have been deleted");
            return Err(Error::new(code::cursor_expired(self), message)
                .with_field("after")
                .with_hint(FROM_THE_FIRST));
        }
        Ok(number)
    }

    fn invalid(&self) -> Error {
        invalid(&self.0)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn invalid(text: &str) -> Error {
    Error::invalid("after", format!("{text:?} is not a cursor of this server's events"))
        .with_code(code::cursor_invalid(text))
        .with_hint("Send the `cursor` of an earlier response unchanged, or leave it out")
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        // Keeps the quotation in the error short.
        let refused = || invalid(&s.chars().take(LONGEST).collect::<String>());
        if !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) {
            // A number alone, as it was before cursors were texts.
            return s.parse().map(Self::numbered).map_err(|_| refused());
        }
        let may_stand = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
        let begins = s.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if begins && s.len() <= LONGEST && s.bytes().all(may_stand) {
            return Ok(Self(s.to_owned()));
        }
        Err(refused())
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

crate::nouns::id::string_serde!(Cursor);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn cursor(text: &str) -> Cursor {
        text.parse().unwrap()
    }

    #[test]
    fn a_cursor_is_read_back_and_an_old_number_is_one() {
        for number in [0, 1, 15, 16, 4711, u64::MAX] {
            let given = Cursor::numbered(number);
            assert_eq!(cursor(given.as_str()), given);
            assert_eq!(cursor(&number.to_string()), given);
            assert_eq!(given.number_within(0, u64::MAX).unwrap(), number);
            let json = serde_json::to_string(&given).unwrap();
            assert_eq!(
                (json.as_str(), serde_json::from_str::<Cursor>(&json).unwrap()),
                (&*format!("\"{given}\""), given)
            );
        }
    }

    #[test]
    fn what_is_no_cursor_is_refused_and_quoted_shortly() {
        let (long, number) = ("a".repeat(101), "9".repeat(1000));
        for bad in ["", "-5", "a b", "e1-\u{e4}", "e1/2", "e1-+5", "18446744073709551616", &long, &number] {
            let e = bad.parse::<Cursor>().unwrap_err();
            assert_eq!(
                (e.kind(), e.field(), e.code().name()),
                (ErrorKind::Invalid, Some("after"), "cursor_invalid"),
                "{bad}"
            );
            assert!(e.message().len() < 200, "{e}");
        }
        // The form of another store, or of a later version of ours.
        for other in ["e2-5", "e1-", "e1-G", "e1-05", "e1-A", "E1-5", "lsn.0-16B3748"] {
            let e = cursor(other).number_within(0, u64::MAX).unwrap_err();
            assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("after")), "{other}");
        }
    }

    #[test]
    fn a_cursor_outside_of_what_is_kept_says_what_to_do() {
        let at =
            |number| Cursor::numbered(number).number_within(10, 20).map_err(|e| e.code().name().to_owned());
        for number in [0, 10, 11, 20] {
            assert_eq!(at(number), Ok(number));
        }
        assert_eq!(at(9), Err("cursor_expired".to_owned()));
        assert_eq!(at(21), Err("cursor_unknown".to_owned()));
        let e = Cursor::numbered(21).number_within(10, 20).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound);
        assert!(e.hint().unwrap().contains("leave `after` out"));
    }
}
