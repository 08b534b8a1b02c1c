//! `ggnet-server backends`: lists the available backends and the configuration keys of each.

use ggnet_core::{
    Error, Result,
    registry::{About, PortName, Registry},
};
use serde_json::{Value, json};

use crate::{config::usual, say::say};

/// Prints the list.
pub(crate) fn list(registry: &Registry, as_json: bool) -> Result<()> {
    let all =
        PortName::ALL.into_iter().flat_map(|port| registry.all(port).into_iter().map(move |a| (port, a)));
    if as_json {
        let all: Vec<Value> = all.map(|(port, about)| described(port, about)).collect();
        let text = serde_json::to_string_pretty(&all)
            .map_err(|e| Error::internal("The list of backends cannot be written as JSON").with_source(e))?;
        return say(&text);
    }
    let texts: Vec<String> = all.map(|(port, about)| text(port, about)).collect();
    say(&texts.join("\n"))
}

fn is_default(port: PortName, about: &About) -> bool {
    usual(port) == about.name()
}

fn described(port: PortName, about: &About) -> Value {
    let key = |(name, meaning): &(&str, &str)| json!({ "name": name, "meaning": meaning });
    json!({
        "port": port.as_str(),
        "backend": about.name(),
        "default": is_default(port, about),
        "summary": about.summary(),
        "keys": about.keys().map(|keys| keys.iter().map(key).collect::<Vec<_>>()),
    })
}

fn text(port: PortName, about: &About) -> String {
    let mut text = format!("[{port}] backend = \"{}\"", about.name());
    if is_default(port, about) {
        text.push_str(" (default)");
    }
    if !about.summary().is_empty() {
        text.push_str(&format!(": {}", about.summary()));
    }
    text.push('\n');
    match about.keys() {
        None => text.push_str("    keys: see the documentation of its author\n"),
        Some([]) => text.push_str("    no keys\n"),
        Some(keys) => {
            let width = keys.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            for (name, meaning) in keys {
                text.push_str(&format!("    {name:<width$}  {meaning}\n"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use ggnet_core::registry::Descriptor;

    use super::*;

    #[test]
    fn a_backend_is_listed_with_its_keys() {
        let mut registry = Registry::new();
        let mine = || Descriptor::new("mine", |_, _| std::future::pending()).summary("Mine");
        registry.dhcp.add(mine().keys(&[("path", "A file"), ("a", "A letter")]));
        registry.boot_files.add(Descriptor::new("builtin", |_, _| std::future::pending()));
        let about = |port, name| registry.about(port, name).unwrap();
        assert_eq!(
            text(PortName::Dhcp, about(PortName::Dhcp, "mine")),
            "[dhcp] backend = \"mine\": Mine\n    path  A file\n    a     A letter\n"
        );
        let other = text(PortName::BootFiles, about(PortName::BootFiles, "builtin"));
        assert_eq!(
            other,
            "[boot_files] backend = \"builtin\" (default)\n    keys: see the documentation of its author\n"
        );
        let json = described(PortName::Dhcp, about(PortName::Dhcp, "mine"));
        assert_eq!(json["keys"][1]["meaning"], "A letter");
    }
}
