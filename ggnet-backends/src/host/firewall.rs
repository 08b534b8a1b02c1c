//! Checks whether the host's firewall (nftables, also used by ufw, firewalld and iptables) accepts packets on our ports.
//!
//! Only certain findings are reported: an input chain that drops packets by default, in a table in which no rule mentions the port. A rule
//! that cannot be parsed counts as one that opens the port.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Finding, Level, Transport};

/// The `ports` that a ruleset blocks: `closed` for each, with the command that opens it. `ruleset` is the output of `nft -j list ruleset`.
#[must_use]
pub fn firewall(ruleset: &str, ports: &BTreeSet<(Transport, u16)>, closed: Level) -> Vec<Finding> {
    let what = "firewall";
    let Ok(ruleset) = serde_json::from_str::<Value>(ruleset) else {
        return vec![Finding::unknown(what, &"the output of nft is not JSON")];
    };
    let objects: Vec<&Value> = ruleset["nftables"].as_array().into_iter().flatten().collect();
    let gates: Vec<&Value> = objects
        .iter()
        .map(|o| &o["chain"])
        .filter(|chain| chain["hook"] == "input" && chain["policy"] == "drop")
        .collect();
    let mut findings = Vec::new();
    for gate in gates {
        let (family, table, chain) = (text(gate, "family"), text(gate, "table"), text(gate, "name"));
        let rules: Vec<&Value> = objects
            .iter()
            .map(|o| &o["rule"])
            .filter(|rule| text(rule, "family") == family && text(rule, "table") == table)
            .collect();
        for (transport, port) in
            ports.iter().filter(|(_, port)| !rules.iter().any(|rule| may_open(rule, *port)))
        {
            let protocol = transport.to_string().to_lowercase();
            findings.push(Finding::bad(
                closed,
                format!("firewall, {transport} port {port}"),
                format!("Table {family} {table}, chain {chain} drops packets by default, and no rule mentions this port"),
                format!(
                    "sudo nft add rule {family} {table} {chain} {protocol} dport {port} accept    (with ufw: sudo ufw allow {port}/{protocol})"
                ),
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(what, "No nftables chain is known to drop packets to our ports"));
    }
    findings
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

/// Whether a rule may accept packets to `port`.
fn may_open(rule: &Value, port: u16) -> bool {
    let parts: Vec<&Value> = rule["expr"].as_array().into_iter().flatten().collect();
    parts.iter().any(|part| {
        // The output does not include matches of iptables extensions.
        if part.get("xt").is_some() {
            return true;
        }
        let matched = &part["match"];
        matched["left"]["payload"]["field"] == "dport" && names(&matched["right"], port)
    })
}

/// Whether the right side of a match is or contains a port.
fn names(right: &Value, port: u16) -> bool {
    let port64 = u64::from(port);
    match right {
        Value::Number(n) => n.as_u64() == Some(port64),
        // A named set: it may contain anything.
        Value::String(_) => true,
        Value::Array(all) => all.iter().any(|one| names(one, port)),
        Value::Object(of) => {
            let range = of.get("range").and_then(Value::as_array);
            let within = range.and_then(|r| Some((r.first()?.as_u64()?, r.get(1)?.as_u64()?)));
            within.is_some_and(|(from, to)| (from..=to).contains(&port64))
                || of.get("set").is_some_and(|set| names(set, port))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(ruleset: &str) -> Vec<String> {
        let ports = [(Transport::Udp, 69), (Transport::Tcp, 3260), (Transport::Tcp, 8080)].into();
        let findings = firewall(ruleset, &ports, Level::Warn);
        findings.into_iter().filter(|f| f.level != Level::Ok).map(|f| f.what).collect()
    }

    /// In the format of nft 1.0.6.
    fn ruleset(policy: &str, right: &str) -> String {
        format!(
            r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6", "json_schema_version": 1}}}},
            {{"table": {{"family": "inet", "name": "filter", "handle": 1}}}},
            {{"chain": {{"family": "inet", "table": "filter", "name": "input", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "{policy}"}}}},
            {{"rule": {{"family": "inet", "table": "filter", "chain": "input", "handle": 2, "expr": [
              {{"match": {{"op": "==", "left": {{"payload": {{"protocol": "tcp", "field": "dport"}}}}, "right": {right}}}}}, {{"accept": null}}]}}}}]}}"#
        )
    }

    #[test]
    fn a_port_that_no_rule_of_a_dropping_table_speaks_of_is_closed() {
        let udp = "firewall, UDP port 69";
        assert_eq!(closed(&ruleset("drop", "8080")), ["firewall, TCP port 3260", udp]);
        assert_eq!(closed(&ruleset("drop", r#"{"set": [8080, {"range": [3000, 4000]}]}"#)), [udp]);
        assert_eq!(closed(&ruleset("drop", r#""@ours""#)), [""; 0], "it may hold them all");
        assert_eq!(closed(&ruleset("accept", "22")), [""; 0]);
        assert_eq!(closed(r#"{"nftables": []}"#), [""; 0]);
        let f = firewall(&ruleset("drop", "22"), &[(Transport::Udp, 69)].into(), Level::Warn);
        let mend = f[0].mend.as_deref().unwrap();
        assert!(mend.starts_with("sudo nft add rule inet filter input udp dport 69 accept"), "{mend}");
        assert!(mend.contains("ufw allow 69/udp"), "{mend}");
        assert_eq!(firewall("nonsense", &[].into(), Level::Warn)[0].level, Level::Warn);
    }
}
