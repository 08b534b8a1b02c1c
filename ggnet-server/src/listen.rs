//! Parses addresses to listen on.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize as _, Deserializer};

/// Parses `127.0.0.1:8080`, `[::1]:8080` or `localhost:8080`, which means 127.0.0.1.
///
/// # Errors
/// Anything else: the reason, and an example.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let example =
        "an address of this host and a port, such as 127.0.0.1:8080 or 0.0.0.0:8080 (all addresses)";
    let local = text.rsplit_once(':').filter(|(host, _)| host.eq_ignore_ascii_case("localhost"));
    match local {
        Some((_, port)) => {
            let port = port.parse().map_err(|_| format!("{port:?} is not a port; use {example}"))?;
            Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        }
        None if text.parse::<std::net::IpAddr>().is_ok() => {
            Err(format!("the port is missing; use {example}"))
        }
        None => Err(format!("this is not an IP address, and host names are not supported; use {example}")),
    }
}

/// Parses an address in the configuration file.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(d)?;
    address(&text).map_err(|why| serde::de::Error::custom(format!("{text:?}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_every_error_has_an_example() {
        for (text, address) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::1]:8080", "[::1]:8080"),
            ("localhost:8080", "127.0.0.1:8080"),
            ("LocalHost:80", "127.0.0.1:80"),
        ] {
            assert_eq!(super::address(text).unwrap(), address.parse().unwrap(), "{text}");
        }
        for (text, why) in [
            ("127.0.0.1", "the port is missing"),
            ("::1", "the port is missing"),
            ("server.example:8080", "host names are not supported"),
            ("8080", "host names are not supported"),
            ("localhost", "host names are not supported"),
            ("localhost:http", "is not a port"),
            ("localhost:65536", "is not a port"),
        ] {
            let error = address(text).unwrap_err();
            assert!(error.contains(why) && error.contains("such as 127.0.0.1:8080"), "{text}: {error}");
        }
    }
}
