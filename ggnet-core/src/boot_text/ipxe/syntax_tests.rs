use super::*;

fn found(script: &str) -> Vec<(usize, Severity)> {
    check(script).diagnostics.iter().map(|d| (d.line, d.severity)).collect()
}

const E: Severity = Severity::Error;
const W: Severity = Severity::Warning;

fn assert_clean(script: &str) {
    let report = check(script);
    assert!(report.diagnostics.is_empty(), "{script}\n{:#?}", report.diagnostics);
}

/// A lab's first-stage and per-machine scripts; both boot real virtual machines.
#[test]
fn working_scripts_have_no_errors() {
    let first = "#!ipxe\necho lab: boot.ipxe on ${mac} ip ${ip} platform ${platform}\n\
        chain --autofree tftp://${next-server}/boot/${mac:hexhyp}.ipxe || goto no\n:no\n\
        echo lab: no script for ${mac}\nsleep 5\nexit 1\n";
    // A key press during the pause would end it early, before its exit: only a warning.
    assert_eq!(found(first), [(6, W)]);
    let machine = "#!ipxe\nset initiator-iqn iqn.2024-01.lab.client:01\nset keep-san 1\n\
        sanboot iscsi:${next-server}:::0:iqn.2024-01.lab.server:01 || goto failed\n\
        :failed\necho SAN boot failed\nsleep 5 ||\nexit 1\n";
    assert_clean(machine);
}

#[test]
fn a_menu_is_clean() {
    assert_clean(
        "#!ipxe\n\
         set menu-timeout 5000\n\
         isset ${menu-default} || set menu-default disk\n\
         :start\n\
         menu Boot menu of ${hostname}\n\
         item --gap --             ---- Systems ----\n\
         item --key d disk         The disk (d)\n\
         item --key s shell        iPXE shell (s)\n\
         item\n\
         item reboot               Reboot\n\
         choose --timeout ${menu-timeout} --default ${menu-default} selected || goto cancel\n\
         goto ${selected} ||\n\
         goto start\n\
         :cancel\n\
         echo You cancelled the menu\n\
         :shell\n\
         shell\n\
         goto start\n\
         :reboot\n\
         reboot\n\
         :disk\n\
         sanboot --no-describe --drive 0x80 || goto start\n\
         goto start\n",
    );
}

#[test]
fn a_kernel_boot_is_clean() {
    assert_clean(
        "#!ipxe\n\
         set base http://10.0.0.1/debian # the mirror\n\
         :retry ifopen net0 ||\n\
         dhcp net0 || goto retry\n\
         kernel ${base}/linux initrd=initrd.gz quiet -- console=ttyS0 || goto failed\n\
         initrd --name initrd.gz ${base}/initrd.gz || goto failed\n\
         iseq ${buildarch} x86_64 && imgstat ||\n\
         cpuid --ext 29 && set arch amd64 || set arch i386\n\
         boot || goto failed\n\
         :failed\n\
         prompt --timeout 10000 --key 0x02 Press Ctrl-B for the shell && shell ||\n\
         imgfree\n\
         exit 1\n",
    );
}

#[test]
fn a_windows_style_boot_is_clean_but_for_the_optional_parts() {
    let script = "#!ipxe\n\
        params ||\n\
        param mac ${netX/mac} ||\n\
        console --picture http://10.0.0.1/logo.png --left 32 ||\n\
        set keep-san 1\n\
        sanhook --drive 0x80 iscsi:10.0.0.1::::iqn.2026-11.local.ggnet:pc || goto no\n\
        kernel http://10.0.0.1/wimboot gui || goto no\n\
        initrd http://10.0.0.1/boot/bcd BCD || goto no\n\
        boot || goto no\n\
        :no\n\
        poweroff || exit 1\n";
    assert_eq!(found(script), [(2, W), (3, W), (4, W), (11, W)]);
    assert!(check(script).is_valid());
}

/// A generated script that cannot boot: a missing colon in the SAN URI, a fallback that is never reached because the failure of `sanboot`
/// is not handled, and a line after the reboot.
#[test]
fn a_generated_script_with_four_colons_is_refused_in_its_line() {
    let script = "#!ipxe\n\
        # Machine: pc1 (ID: 1)\n\
        console --x 1024 --y 768\n\
        dhcp\n\
        set initiator-iqn iqn.2025.ggnet:initiator-AABBCCDDEEFF\n\
        set target-iqn iqn.2025.ggnet:target-machine_1\n\
        echo Booting pc1\n\
        sanboot iscsi:192.168.1.10::0:iqn.2025.ggnet:target-machine_1\n\
        echo iSCSI boot failed\n\
        chain pxelinux.0\n\
        sleep 10\n\
        reboot\n\
        set uefi-boot true\n";
    let report = check(script);
    let errors: Vec<_> = report.errors().map(|d| d.line).collect();
    assert_eq!(errors, [8], "{report:#?}");
    let warnings: Vec<_> = report.warnings().map(|d| d.line).collect();
    assert_eq!(warnings, [3, 3, 4, 8, 10, 11, 13], "{report:#?}");
}

#[test]
fn wrong_san_uris_of_many_kinds_are_found() {
    for (uri, why) in [
        ("iscsi:10.0.0.1:::1:iqn.2024.netboot:disk", "YYYY-MM"),
        ("iscsi:10.0.0.1:3260::1:iqn.2024-01.netboot:disk", "protocol"),
        ("iscsi:iscsi-target:3260::1:iqn.2024.local:device.${net0/mac}", "protocol"),
        ("iscsi:${portal-ip}::${lun-id}:${target-iqn}", "colons"),
        ("iscsi:10.0.0.1::3260:0:iqn.2025-10.ggnet:target-machine_1", "'_'"),
    ] {
        let report = check(&format!("#!ipxe\necho a\nsanhook {uri} ||\n"));
        let errors: Vec<_> = report.errors().collect();
        assert_eq!(errors.len(), 1, "{uri}: {report:#?}");
        assert_eq!(errors[0].line, 3);
        assert!(errors[0].message.contains(why), "{uri}: {}", errors[0].message);
    }
}

#[test]
fn each_error_has_its_line() {
    for (script, line, why) in [
        ("", 1, "#!ipxe"),
        ("echo a\n", 1, "#!ipxe"),
        ("\n#!ipxe\necho a\n", 1, "#!ipxe"),
        ("#!ipxeecho\n", 1, "#!ipxe"),
        ("#!ipxe", 1, "#!ipxe"),
        ("#!ipxe\n\nbootdisk now\n", 3, "unknown command \"bootdisk\""),
        ("#!ipxe\nECHO a\n", 2, "unknown command"),
        ("#!ipxe\nif [ x ]; then\n", 2, "unknown command"),
        ("#!ipxe\ndhcp|| goto x ||\n:x\n", 2, "unknown command \"dhcp||\""),
        ("#!ipxe\ngoto nowhere\n", 2, "no label"),
        ("#!ipxe\n:a\ngoto :a\n", 3, "without the colon"),
        ("#!ipxe\n:a\necho x\n:a\n", 4, "twice"),
        ("#!ipxe\n:\n", 2, "no name"),
        ("#!ipxe\nchain --autofree\\\n --frobnicate x ||\n", 2, "no option"),
        ("#!ipxe\nset\n", 2, "at least 1"),
        ("#!ipxe\niseq a ||\n", 2, "takes 2"),
        ("#!ipxe\nsleep soon ||\n", 2, "number"),
        ("#!ipxe\nexit fine\n", 2, "number"),
        ("#!ipxe\necho ${net0/mac\n", 2, "does not close"),
        ("#!ipxe\necho ${net0/mac }\n", 2, "does not close"),
        ("#!ipxe\necho a\u{0}b\n", 2, "NUL"),
        ("#!ipxe\necho a || nonsense\n", 2, "unknown command \"nonsense\""),
    ] {
        let report = check(script);
        let errors: Vec<_> = report.errors().collect();
        assert!(!errors.is_empty(), "{script:?}");
        assert_eq!(errors[0].line, line, "{script:?}: {report:#?}");
        assert!(errors[0].message.contains(why), "{script:?}: {}", errors[0].message);
    }
}

#[test]
fn a_failure_that_ends_the_script_is_a_warning_and_a_handled_one_is_not() {
    for (line, warned) in [
        ("dhcp", true),
        ("dhcp ||", false),
        ("dhcp || goto a", false),
        ("dhcp || chain http://h/x", true),
        ("dhcp && goto a", true),
        ("dhcp && goto a ||", false),
        ("iseq a b && goto a", true),
        ("iseq a b && echo x || echo y", false),
        ("dhcp ; echo x", false),
        ("echo x ; dhcp", true),
        ("chain --replace http://h/x", true),
        ("isset ${netX/ip} || dhcp ||", false),
        ("isset ${netX/ip} || dhcp", true),
        ("imgfree", false),
        ("imgfree x", true),
        ("exit 1", false),
    ] {
        let script = format!("#!ipxe\n:a\n{line}\n");
        let warned_here = check(&script).warnings().any(|d| d.line == 3 && d.message.contains("fails here"));
        assert_eq!(warned_here, warned, "{line}");
    }
}

#[test]
fn what_cannot_be_reached_is_told_once() {
    assert_eq!(found("#!ipxe\nexit 1\necho a\necho b\n:x\necho c\n"), [(3, W)]);
    assert_eq!(found("#!ipxe\n:x\ngoto x\necho a\n"), [(4, W)]);
    assert_eq!(found("#!ipxe\nchain --replace http://h/x || exit 1\necho a\n"), [(3, W)]);
    assert_eq!(found("#!ipxe\nchain --replace http://h/x ||\necho a\n"), []);
    assert_eq!(found("#!ipxe\nreboot\n\n# only a comment\n"), []);
}

#[test]
fn newer_commands_and_options_are_told() {
    assert_eq!(found("#!ipxe\nsha256sum x ||\n"), [(2, W)]);
    assert_eq!(found("#!ipxe\ndhcp --timeout 5000 ||\n"), [(2, W)]);
    assert_eq!(found("#!ipxe\nreboot --setup\n"), [(2, W)]);
    assert!(found("#!ipxe\ngoto ${target} ||\n${cmd} x\n").contains(&(3, W)));
    let _ = E;
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(#!ipxe\n)?([ -~\n\r\t\\\\é]|\\|\\||&&|\\$\\{|echo |goto |:a\n){0,80}") {
        let _ = check(&text);
        let _ = crate::boot_text::ipxe::inspect(&text);
    }
}
