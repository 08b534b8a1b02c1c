//! Where to listen, as people write it.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize as _, Deserializer};

/// `127.0.0.1:8080`, `[::1]:8080`, or `localhost:8080`, which is the former of the two.
///
/// # Errors
/// For anything else: what is wrong with it, and an example.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let example =
        "an address of this host and a port, such as 127.0.0.1:8080 or 0.0.0.0:8080 (all addresses)";
    let local = text.rsplit_once(':').filter(|(host, _)| host.eq_ignore_ascii_case("localhost"));
    match local {
        Some((_, port)) => {
            let port = port.parse().map_err(|_| format!("{port:?} is no port; write {example}"))?;
            Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        }
        None if text.parse::<std::net::IpAddr>().is_ok() => {
            Err(format!("the port is missing; write {example}"))
        }
        None => Err(format!("names are not looked up, and this is no address; write {example}")),
    }
}

/// The same in the configuration file.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(d)?;
    address(&text).map_err(|why| serde::de::Error::custom(format!("{text:?}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plain_is_understood_and_the_rest_says_what_to_write() {
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
            ("server.example:8080", "names are not looked up"),
            ("8080", "names are not looked up"),
            ("localhost", "names are not looked up"),
            ("localhost:http", "is no port"),
            ("localhost:65536", "is no port"),
        ] {
            let said = address(text).unwrap_err();
            assert!(said.contains(why) && said.contains("such as 127.0.0.1:8080"), "{text}: {said}");
        }
    }
}
