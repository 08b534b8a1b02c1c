use std::path::PathBuf;

use super::*;
use crate::{
    boot_text::ipxe::{self, model::Ending},
    error::ErrorKind,
};

fn is_template_error(error: &Error) -> bool {
    error.kind() == ErrorKind::Invalid && error.field() == Some("template")
}

fn templates() -> BootTemplates {
    BootTemplates::load(None).unwrap()
}

fn machine_script(chap: bool) -> MachineScript {
    MachineScript {
        machine: "pc-17".parse().unwrap(),
        mac: "52:54:00:aa:00:01".parse().unwrap(),
        image: "debian".parse().unwrap(),
        version: 3,
        san: "iscsi:10.0.2.2::3261:1a:iqn.2026-11.local.ggnet:0123abcd.x.4".parse().unwrap(),
        initiator: "iqn.2026-11.local.ggnet:525400aa0001".parse().unwrap(),
        chap: chap.then(|| ChapPair {
            user: "pc-17.4".to_owned(),
            secret: crate::nouns::Secret::new("Abcdefgh12345678"),
        }),
        report_url: "http://10.0.2.2:8080/boot/report/52-54-00-aa-00-01".parse().unwrap(),
    }
}

fn all_scripts(t: &BootTemplates) -> Vec<String> {
    let server_url: BootUrl = "http://10.0.2.2:8080".parse().unwrap();
    let (machine, mac) = (machine_script(false).machine, machine_script(false).mac);
    vec![
        t.machine(&machine_script(true)).unwrap(),
        t.machine(&machine_script(false)).unwrap(),
        t.first(&FirstScript { server_url: server_url.clone() }).unwrap(),
        t.unknown(&UnknownScript { mac, server_url: server_url.clone() }).unwrap(),
        t.declined(&DeclinedScript { machine: machine.clone(), mac, reason: "Under repair".into() }).unwrap(),
        t.chain(&ChainScript { machine, script_url: server_url.join("boot/x.ipxe").unwrap() }).unwrap(),
    ]
}

#[test]
fn our_own_scripts_pass_with_no_warning_at_all() {
    for script in all_scripts(&templates()) {
        let report = ipxe::check(&script);
        assert!(report.diagnostics.is_empty(), "{script}\n{:#?}", report.diagnostics);
        assert!(script.starts_with("#!ipxe\n") && script.is_ascii());
        assert!(!script.contains("net0"), "{script}");
    }
    for t in Template::ALL {
        assert!(!t.built_in().contains("| safe") && !t.built_in().contains("|safe"));
    }
}

#[test]
fn the_machine_script_word_for_word() {
    let script = templates().machine(&machine_script(true)).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let want = format!(
        "#!ipxe

echo
echo GGnet {version}: pc-17 boots debian version 3
# A machine that came here without DHCP has no address yet.
isset ${{netX/ip}} || dhcp ||
set initiator-iqn iqn.2026-11.local.ggnet:525400aa0001
set username pc-17.4
set password Abcdefgh12345678
clear keep-san
set failure none
set attempt:int32 0
:attach
inc attempt
echo Attaching the disk (attempt ${{attempt}} of 3)
sanhook iscsi:10.0.2.2::3261:1a:iqn.2026-11.local.ggnet:0123abcd.x.4 && goto boot || set failure ${{errno}}
iseq ${{attempt}} 3 && goto attach_failed ||
# A disk that an earlier script left behind would hold the drive's number for ever.
sanunhook ||
sleep 2 ||
goto attach

:boot
set stage boot
set keep-san 1
sanboot || set failure ${{errno}}
goto failed

:attach_failed
set stage attach

:failed
# The next boot device gets its own drive number back (never while keep-san is set), and the secret is cleared.
clear keep-san
sanunhook ||
clear username
clear password
imgfetch --name ggnet-report --timeout 5000 http://10.0.2.2:8080/boot/report/52-54-00-aa-00-01?stage=${{stage}}&errno=${{failure}} && imgfree ggnet-report ||
echo
echo GGnet {version}: pc-17 could not boot debian from the network
echo Stage ${{stage}}, iPXE error ${{failure}}, MAC address ${{netX/mac}}
echo Going on with the next boot device in 10 seconds
sleep 10 ||
exit 1
"
    );
    assert_eq!(script, want);
}

#[test]
fn the_machine_script_does_what_it_should() {
    let script = templates().machine(&machine_script(true)).unwrap();
    let s = ipxe::inspect(&script).unwrap();
    let want = machine_script(true);
    assert_eq!(s.initiator.as_deref(), Some(want.initiator.as_str()));
    assert_eq!((s.username.as_deref(), s.has_password, s.keep_san), (Some("pc-17.4"), true, true));
    assert_eq!(s.san, [ipxe::inspect::SanAttach { uri: want.san.to_string(), attempts: 3 }]);
    let report = "http://10.0.2.2:8080/boot/report/52-54-00-aa-00-01";
    assert_eq!(
        s.fetches,
        [format!("{report}?stage=attach&errno=${{errno}}"), format!("{report}?stage=boot&errno=${{errno}}")]
    );
    assert!(s.messages.iter().any(|m| m.contains("attempt 3 of 3")), "{:?}", s.messages);
    assert!(s.messages.iter().any(|m| m.contains("could not boot debian")));
    assert_eq!(s.endings.all_works, Ending::Booted { command: "sanboot".into() });
    for failed in [s.endings.attach_fails, s.endings.boot_fails, s.endings.no_network] {
        assert_eq!(failed, Ending::Exit { status: 1 });
    }
    let open = ipxe::inspect(&templates().machine(&machine_script(false)).unwrap()).unwrap();
    assert_eq!((open.username, open.has_password), (None, false));
}

#[test]
fn a_failure_leaves_no_secret_and_no_drive_behind() {
    use std::collections::BTreeMap;
    let script = templates().machine(&machine_script(true)).unwrap();
    for fails in ["sanhook", "sanboot"] {
        let trace = ipxe::model::run(&script, BTreeMap::new(), &mut |s| s.name != fails);
        assert!(!trace.settings.contains_key("password") && !trace.settings.contains_key("keep-san"));
        let last = |name: &str| trace.steps.iter().rposition(|s| s.name == name);
        assert!(last("sanunhook") > last("sanhook"), "{fails}");
    }
}

#[test]
fn dhcp_is_asked_only_without_an_address() {
    let script = templates().machine(&machine_script(false)).unwrap();
    let asks = |ip: &str| {
        let known = [("netX/ip".to_owned(), ip.to_owned())].into();
        ipxe::model::run(&script, known, &mut |_| true).steps.iter().any(|s| s.name == "dhcp")
    };
    assert!(asks("") && !asks("10.0.2.15"));
}

#[test]
fn the_other_scripts_do_what_they_should() {
    let scripts = all_scripts(&templates());
    let [first, unknown, declined, chain] = [2, 3, 4, 5].map(|i| ipxe::inspect(&scripts[i]).unwrap());
    assert_eq!(first.chains, ["http://10.0.2.2:8080/boot/${netX/mac:hexhyp}.ipxe"]);
    let url = first.chains[0].clone();
    assert_eq!(first.endings.all_works, Ending::Replaced { url });
    assert_eq!(first.endings.no_network, Ending::Exit { status: 1 });
    assert_eq!(chain.chains, ["http://10.0.2.2:8080/boot/x.ipxe"]);
    assert_eq!(chain.endings.no_network, Ending::Exit { status: 1 });
    assert!(unknown.messages.contains(&"ggnet machine add --seen 52:54:00:aa:00:01".to_owned()));
    assert!(unknown.messages.contains(&"MAC address 52:54:00:aa:00:01".to_owned()));
    assert!(declined.messages.contains(&"Reason: Under repair".to_owned()));
    for s in [&unknown, &declined] {
        assert_eq!(s.endings.all_works, Ending::Exit { status: 1 });
        assert!(s.chains.is_empty() && s.fetches.is_empty() && s.san.is_empty());
    }
    // A download is tried three times.
    let trace = ipxe::model::run(&scripts[2], [].into(), &mut |s| s.name != "chain");
    assert_eq!(trace.steps.iter().filter(|s| s.name == "chain").count(), 3);
}

#[test]
fn timing_is_the_operators() {
    let t = templates().with_timing(Timing { attempts: 0, retry_seconds: 1, wait_seconds: 33 });
    let script = t.machine(&machine_script(false)).unwrap();
    assert_eq!(ipxe::inspect(&script).unwrap().san[0].attempts, 1);
    assert!(script.contains("sleep 33 ||"));
}

#[test]
fn a_hostile_reason_stays_text() {
    let t = templates();
    for reason in
        ["x\nshell", "x || shell", "x && shell ||", "${password}", "x # y", "\\", "a\r\n:attach\nreboot"]
    {
        let (machine, mac) = (machine_script(false).machine, machine_script(false).mac);
        let script = t.declined(&DeclinedScript { machine, mac, reason: reason.into() }).unwrap();
        assert!(ipxe::check(&script).diagnostics.is_empty(), "{script}");
        let s = ipxe::inspect(&script).unwrap();
        assert_eq!(s.endings.all_works, Ending::Exit { status: 1 }, "{script}");
        let ran = ipxe::model::run(&script, [].into(), &mut |_| true);
        assert!(ran.steps.iter().all(|s| matches!(s.name.as_str(), "echo" | "sleep" | "exit")), "{script}");
    }
    let long = DeclinedScript {
        machine: machine_script(false).machine,
        mac: machine_script(false).mac,
        reason: "x ".repeat(10_000),
    };
    assert!(t.declined(&long).unwrap().len() < 1500);
}

#[test]
fn a_hostile_credential_is_an_error_without_the_value() {
    let mut script = machine_script(true);
    script.chap = Some(ChapPair { user: "a b".into(), secret: crate::nouns::Secret::new("top\nsecret") });
    let e = templates().machine(&script).unwrap_err();
    script.chap = Some(ChapPair { user: "a".into(), secret: crate::nouns::Secret::new("top\nsecret") });
    let f = templates().machine(&script).unwrap_err();
    for e in [e, f] {
        assert!(is_template_error(&e) && !e.report().contains("secret"), "{}", e.report());
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(file: &str, text: impl AsRef<[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut f = std::fs::File::create(dir.path().join(file)).unwrap();
        std::io::Write::write_all(&mut f, text.as_ref()).unwrap();
        Self(dir)
    }

    fn refusal(&self) -> Error {
        let e = BootTemplates::load(Some(self.0.path())).unwrap_err();
        assert!(is_template_error(&e), "{e}");
        e
    }
}

#[test]
fn an_override_replaces_one_template_and_leaves_the_others() {
    let dir = Folder::with("declined.ipxe.tera", "#!ipxe\necho Ask the desk: {{ reason }}\nexit 1\n");
    let t = BootTemplates::load(Some(dir.0.path())).unwrap();
    let (machine, mac) = (machine_script(false).machine, machine_script(false).mac);
    let script = t.declined(&DeclinedScript { machine, mac, reason: "no $".into() }).unwrap();
    assert_eq!(script, "#!ipxe\necho Ask the desk: no ?\nexit 1\n");
    assert_eq!(
        t.machine(&machine_script(true)).unwrap(),
        templates().machine(&machine_script(true)).unwrap()
    );
}

#[test]
fn every_built_in_template_can_be_an_override() {
    for template in Template::ALL {
        let dir = Folder::with(template.file_name(), template.built_in());
        BootTemplates::load(Some(dir.0.path())).unwrap();
    }
}

#[test]
fn an_override_may_use_tera_to_the_full() {
    let text = "#!ipxe\n{% set greeting = \"Hello \" ~ machine -%}\n{% for i in [1, 2] -%}\necho {{ greeting }} {{ i }}/{{ loop.index }}\n\
        {% endfor -%}\n{% if reason is starting_with(pat=\"Under\") -%}\necho repair\n{% endif -%}\nexit 1\n";
    let dir = Folder::with("declined.ipxe.tera", text);
    let t = BootTemplates::load(Some(dir.0.path())).unwrap();
    let (machine, mac) = (machine_script(false).machine, machine_script(false).mac);
    let script = t.declined(&DeclinedScript { machine, mac, reason: "Under repair".into() }).unwrap();
    assert_eq!(script, "#!ipxe\necho Hello pc-17 1/1\necho Hello pc-17 2/2\necho repair\nexit 1\n");
}

#[test]
fn a_bad_override_is_refused_with_file_and_line() {
    for (text, line, why) in [
        ("#!ipxe\necho a\n{% if machine %}\n", 4, ""),
        ("#!ipxe\n\necho {{ machine \n", 3, ""),
        ("#!ipxe\necho {{ machine }}\necho {{ machin }}\n", 3, "machin"),
        ("#!ipxe\n{% if false %}\necho {{ nobody }}\n{% endif %}\n", 3, "nobody"),
        ("#!ipxe\necho {{ machine | upperr }}\n", 2, "upperr"),
        ("#!ipxe\necho a\necho {{ machine | safe }}\n", 3, "safe"),
        ("#!ipxe\nset password {{ reason | word }}\n", 2, "cannot be used"),
        ("#!ipxe\necho a\n\nsanbot x\n", 4, "unknown command"),
        ("#!ipxe\n{# one\n two #}\necho {{ machine }}\ngoto nowhere\n", 5, "no label"),
        ("#!ipxe\n{% if true -%}\necho x\n{% endif -%}\nfoo {{ machine }}\n", 5, "unknown command"),
        ("#!ipxe\n{{ reason }}\n", 2, "unknown command"),
        ("echo no magic\n", 1, "#!ipxe"),
        ("{# about #}\n#!ipxe\necho x\n", 1, "#!ipxe"),
    ] {
        let e = Folder::with("declined.ipxe.tera", text).refusal();
        let place = format!("declined.ipxe.tera, line {line}:");
        assert!(e.message().contains(&place) && e.message().contains(why), "{text:?}: {}", e.message());
        assert!(!e.message().contains("built-in"), "{}", e.message());
    }
}

#[test]
fn a_file_that_overrides_nothing_or_is_no_text_is_refused() {
    assert!(
        Folder::with("machines.ipxe.tera", "x")
            .refusal()
            .message()
            .contains("does not override any template")
    );
    assert!(
        Folder::with("first.ipxe.tera", b"#!ipxe\n\xff\n")
            .refusal()
            .message()
            .contains("line 2: it is not UTF-8")
    );
    let large = vec![b'#'; usize::try_from(LARGEST_TEMPLATE).unwrap() + 1];
    assert!(Folder::with("first.ipxe.tera", large).refusal().message().contains("larger"));
    BootTemplates::load(Some(Folder::with("README.md", "about").0.path())).unwrap();
    let missing = BootTemplates::load(Some(&PathBuf::from("/nonexistent/templates"))).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}
