//! The initiator's side of a login (RFC 7143 chapter 6 and sections 11.12 to 12.1).
//!
//! ```text
//!  with CHAP:    names, AuthMethod ─▶ CHAP_A ─▶ CHAP_N, CHAP_R (and our challenge) ─▶ operational keys ─▶ full feature phase
//!  without:      names and operational keys ────────────────────────────────────────────────────────▶ full feature phase
//! ```
//!
//! Invariants: with a CHAP pair nothing is accepted without CHAP, and with a mutual pair nothing without the target's authentication; an
//! answer that the offer does not allow is an error; the number of answers, and of keys in them, is limited.

use std::io;

use subtle::ConstantTimeEq as _;

use super::account::Account;
use super::connection::Connection;
use super::error::Error;
use crate::chap::{CHALLENGE_LEN, ChapPair, MAX_BINARY, md5_response};
use crate::login::{CONTINUE, FULL_FEATURE, OPERATIONAL, SECURITY};
use crate::negotiate::{Params, boolean, range};
use crate::pdu::{Bhs, FINAL, IMMEDIATE, opcode};
use crate::text;

/// The bits of the current stage in the flags.
const CURRENT: u8 = 3 << 2;
/// Maximum number of answers to one request.
const ANSWERS: usize = 8;
/// MD5, the only CHAP algorithm that is supported (RFC 1994 section 3).
const MD5: &str = "5";
/// The identifier of the initiator's own challenge; any value is allowed.
const CHALLENGE_ID: u8 = 7;

/// The text keys of an answer, in order.
struct Keys(Vec<(String, String)>);

impl Keys {
    fn get(&self, name: &str) -> Result<&str, Error> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).ok_or_else(|| self.unexpected(name))
    }

    /// The error for an answer in which this key is missing or wrong.
    fn unexpected(&self, wanted: &str) -> Error {
        // A challenge is no secret, and a response proves nothing to anybody else.
        Error::Protocol(format!("login: expected {wanted}, the target said {:?}", self.0))
    }
}

impl Connection {
    /// Connects and logs in.
    ///
    /// # Errors
    /// A network error, a refusal with its status, or an unexpected answer.
    pub async fn login(account: &Account) -> Result<Self, Error> {
        let mut me = Self::connect(account.portal).await?;
        me.log_in(account).await?;
        Ok(me)
    }

    /// Logs in over a new connection. If the future is dropped half-way, the connection cannot be used any further.
    ///
    /// # Errors
    /// Like [`login`](Self::login).
    pub async fn log_in(&mut self, account: &Account) -> Result<(), Error> {
        let mut text = Vec::new();
        text::push(&mut text, "InitiatorName", &account.initiator);
        match &account.target {
            Some(target) => {
                text::push(&mut text, "TargetName", target);
                text::push(&mut text, "SessionType", "Normal");
            }
            None => text::push(&mut text, "SessionType", "Discovery"),
        }
        if let Some(pair) = &account.chap {
            text::push(&mut text, "AuthMethod", "CHAP");
            self.prove(account, pair, &text).await?;
            text.clear();
        }
        for (key, value) in &account.keys {
            text::push(&mut text, key, value);
        }
        let flags = FINAL | OPERATIONAL << 2 | FULL_FEATURE;
        let answer = self.ask(account.isid, flags, &text).await?;
        let terms = agreed(account, &answer)?;
        let declared = account.offer("MaxRecvDataSegmentLength").and_then(text::number);
        // Without a declaration of ours the default holds.
        let max_data = declared.and_then(|n| usize::try_from(n).ok()).unwrap_or(8192);
        self.agree(terms, max_data);
        self.lun = account.lun;
        self.keys.extend(answer.0);
        Ok(())
    }

    /// The security stage with CHAP (RFC 7143 section 12.1.3, RFC 1994).
    async fn prove(&mut self, account: &Account, pair: &ChapPair, names: &[u8]) -> Result<(), Error> {
        let stay = SECURITY << 2;
        let method = self.ask(account.isid, stay, names).await?;
        if method.get("AuthMethod")? != "CHAP" {
            return Err(method.unexpected("AuthMethod=CHAP"));
        }
        let mut text = Vec::new();
        text::push(&mut text, "CHAP_A", MD5);
        let asked = self.ask(account.isid, stay, &text).await?;
        if asked.get("CHAP_A")? != MD5 {
            return Err(asked.unexpected("CHAP_A=5"));
        }
        let id = text::number(asked.get("CHAP_I")?).and_then(|n| u8::try_from(n).ok());
        let id = id.ok_or_else(|| asked.unexpected("CHAP_I below 256"))?;
        let challenge = text::binary(asked.get("CHAP_C")?, MAX_BINARY);
        let challenge = challenge.ok_or_else(|| asked.unexpected("CHAP_C of 1 to 1024 bytes"))?;

        let mut ours = [0; CHALLENGE_LEN];
        getrandom::fill(&mut ours).map_err(io::Error::other)?;
        text.clear();
        text::push(&mut text, "CHAP_N", &pair.user);
        text::push(&mut text, "CHAP_R", &text::to_hex(&md5_response(id, &pair.secret, &challenge)));
        if account.mutual.is_some() {
            text::push(&mut text, "CHAP_I", &CHALLENGE_ID.to_string());
            text::push(&mut text, "CHAP_C", &text::to_hex(&ours));
        }
        let proof = self.ask(account.isid, FINAL | SECURITY << 2 | OPERATIONAL, &text).await?;
        if let Some(mutual) = &account.mutual {
            let right = md5_response(CHALLENGE_ID, &mutual.secret, &ours);
            let given =
                proof.get("CHAP_R").ok().and_then(|r| text::binary(r, MAX_BINARY)).unwrap_or_default();
            let name = proof.get("CHAP_N").is_ok_and(|name| name == mutual.user);
            if !(name && bool::from(given[..].ct_eq(&right[..]))) {
                return Err(Error::Unproved);
            }
        }
        self.keys.extend(method.0);
        self.keys.extend(proof.0);
        Ok(())
    }

    /// Sends one request of a login and returns its complete answer: a text in pieces is joined, and a target that does not move to the
    /// next stage at once is asked again.
    async fn ask(&mut self, isid: [u8; 6], flags: u8, said: &[u8]) -> Result<Keys, Error> {
        let (mut all, mut said, mut asking) = (Vec::new(), said, flags);
        for _ in 0..ANSWERS {
            let (answer, text) = self.login_request(isid, asking, said).await?;
            all.extend_from_slice(&text);
            said = &[];
            let same_stage = answer & CURRENT == flags & CURRENT;
            match (answer & CONTINUE != 0, answer & FINAL != 0) {
                // More text, for which an empty request asks that changes no stage.
                (true, false) if same_stage => asking = flags & CURRENT,
                // It has not made up its mind.
                (false, false) if same_stage && flags & FINAL != 0 => asking = flags,
                (false, _) if answer == flags => {
                    let pairs = text::parse(&all).map_err(|e| Error::Protocol(format!("login: {e}")))?;
                    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
                    return Ok(Keys(pairs.into_iter().map(owned).collect()));
                }
                _ => {
                    return Err(Error::Protocol(format!(
                        "login: expected an answer with flags {flags:#04x}, the target's has {answer:#04x}"
                    )));
                }
            }
        }
        Err(Error::Protocol(format!("login: {ANSWERS} answers and no end")))
    }

    /// Sends one login request (RFC 7143 section 11.12) with these flags and this text; returns the flags and the text of its answer.
    ///
    /// # Errors
    /// A network error, a refusal with its status, or a PDU that is not a login response.
    pub async fn login_request(
        &mut self,
        isid: [u8; 6],
        flags: u8,
        said: &[u8],
    ) -> Result<(u8, Vec<u8>), Error> {
        let mut bhs = Bhs::new(opcode::LOGIN | IMMEDIATE, flags);
        bhs.set(8, &isid);
        bhs.set_word(16, self.numbers.itt);
        bhs.set_word(24, self.numbers.cmd_sn);
        bhs.set_word(28, self.numbers.exp_stat_sn);
        self.send(bhs, said).await?;
        let answer = self.receive().await?;
        if answer.opcode() != opcode::LOGIN_RESPONSE {
            return Err(Error::Protocol(format!(
                "login: expected a login response, the target sent opcode {:#04x}",
                answer.opcode()
            )));
        }
        let (class, detail) = (answer.bhs.0[36], answer.bhs.0[37]);
        if class != 0 {
            return Err(Error::Refused { class, detail });
        }
        self.numbers.exp_stat_sn = answer.word(24).wrapping_add(1);
        self.numbers.window(&answer.bhs);
        Ok((answer.bhs.flags(), answer.data))
    }
}

/// The agreed values, from the target's answers to the offers (RFC 7143 chapter 13).
fn agreed(account: &Account, answer: &Keys) -> Result<Params, Error> {
    let mut terms = Params::default();
    for (key, value) in &answer.0 {
        // A key that is refused or not understood keeps its default.
        if matches!(value.as_str(), "Reject" | "NotUnderstood" | "Irrelevant") {
            continue;
        }
        let offer = account.offer(key);
        let taken = match key.as_str() {
            "HeaderDigest" => digest(offer, value).map(|on| terms.digests.header = on),
            "DataDigest" => digest(offer, value).map(|on| terms.digests.data = on),
            // The side that wants every burst solicited wins.
            "InitialR2T" => {
                boolean(value).filter(|r2t| *r2t || offer == Some("No")).map(|r2t| terms.initial_r2t = r2t)
            }
            // The side that wants none wins.
            "ImmediateData" => boolean(value)
                .filter(|immediate| !*immediate || offer != Some("No"))
                .map(|immediate| terms.immediate_data = immediate),
            "MaxRecvDataSegmentLength" => {
                range(value, 512, 0xff_ffff).map(|length| terms.peer_max_data = length)
            }
            "MaxBurstLength" => length(offer, terms.max_burst, value).map(|length| terms.max_burst = length),
            "FirstBurstLength" => {
                length(offer, terms.first_burst, value).map(|length| terms.first_burst = length)
            }
            _ => Some(()),
        };
        taken.ok_or_else(|| {
            let offer = offer.unwrap_or("nothing");
            Error::Protocol(format!("login: {key}={value} in answer to {offer}"))
        })?;
    }
    terms.first_burst = terms.first_burst.min(terms.max_burst);
    Ok(terms)
}

/// A digest that was offered.
fn digest(offer: Option<&str>, value: &str) -> Option<bool> {
    offer.unwrap_or("None").split(',').any(|one| one == value).then_some(())?;
    match value {
        "None" => Some(false),
        "CRC32C" => Some(true),
        _ => None,
    }
}

/// At most the offered length; if nothing was offered, at most the default.
fn length(offer: Option<&str>, default: u32, value: &str) -> Option<u32> {
    let length = range(value, 512, 0xff_ffff)?;
    match offer {
        Some(offer) => text::number(offer).filter(|most| length <= *most).map(|_| length),
        None => Some(length.min(default)),
    }
}
