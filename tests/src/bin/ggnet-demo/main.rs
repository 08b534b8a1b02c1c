//! `make demo`: two virtual PCs boot from one image through a real server, each with its own disk, while the image stays as
//! it is. Needs no root. Every claim it prints was checked a moment before; the exit code is 0 only if all of them hold.
//!
//! Nothing outlives it: the server and the machines are killed when it ends, however it ends, and its data folder is
//! temporary.

mod pc;
mod show;
mod stages;
mod summary;

use std::process::ExitCode;

use anyhow::{Context, Result};
use ggnet_tests::{Accel, Api, Firmware, GgnetServer, GuestImage, ServerOptions, reserve, sha256_file};

use pc::Pc;
use show::Show;

fn main() -> ExitCode {
    let mut show = Show::new();
    match demo(&mut show) {
        Ok(()) => show.verdict(),
        Err(e) => show.broken(&e),
    }
}

fn demo(show: &mut Show) -> Result<()> {
    show.title("GGnet: one image, two diskless machines, a disk of its own for each");

    show.step("The guest image: a small Linux with GRUB for BIOS and UEFI, its root on iSCSI");
    let guest = GuestImage::get()?;
    let qcow2 = guest.qcow2().canonicalize().context("the guest image")?;
    let accel = match Accel::of_host(&guest)? {
        Accel::Kvm => "KVM",
        Accel::Tcg => "emulation (no usable /dev/kvm): a boot takes half a minute or more",
    };
    show.line(&format!("{}  ({} on disk)", qcow2.display(), show::size(pc::used(&qcow2)?)));
    show.line(&format!("the machines run under {accel}"));

    show.step("The server: no root, loopback ports, an empty data folder");
    let folder = qcow2.parent().context("the image's folder")?.to_owned();
    let server = GgnetServer::start(ServerOptions { import_dirs: vec![folder], ..Default::default() })?;
    show.command(&server.command_line());
    show.line(&format!("HTTP {}   iSCSI 127.0.0.1:{}", server.url(), server.iscsi_port()));
    let api = server.api()?;

    show.step("Importing the image as qcow2 through the API");
    show.command(&format!("ggnet image import golden {}", qcow2.display()));
    let image = api.import_and_wait("golden", &qcow2, |done| show.progress(done))?.version;
    show.progress_done();
    let before = image.sha256.clone().context("the API names no checksum")?;
    show.line(&format!(
        "version {} is ready: {} disk, sha256 {before}",
        image.number,
        show::size(image.size_bytes)
    ));
    let on_disk = sha256_file(&server.version_file(image.id))?;
    show.claim("the file on disk has the checksum that the API says", on_disk == before);
    show.claim(
        "it is the disk that was put into the qcow2 file, byte for byte",
        sha256_file(&guest.raw())? == before,
    );

    let mut pcs = machines(show, &server, &api)?;
    boot_both(show, &server, &api, &mut pcs)?;
    different_disks(show, &mut pcs)?;
    let used: Vec<u64> = pcs.iter().map(|pc| pc.writeback_bytes(&server, &api)).collect::<Result<_>>()?;
    reboot_one(show, &api, &mut pcs)?;

    show.step("The image after all that");
    let after = sha256_file(&server.version_file(image.id))?;
    show.claim("the image's checksum is unchanged", after == before);
    show.claim("the API still says the same of it", api.version(image.id)?.version == image);
    summary::print(show, &pcs, &used, &before, &after);
    Ok(())
}

fn machines(show: &mut Show, server: &GgnetServer, api: &Api) -> Result<Vec<Pc>> {
    show.step("Registering two machines on that one image");
    let mut slots = reserve(2)?;
    let mut pcs = Vec::new();
    for (name, firmware, mac) in
        [("pc-bios", Firmware::Bios, "52:54:00:de:00:01"), ("pc-uefi", Firmware::Uefi, "52:54:00:de:00:02")]
    {
        let word = if firmware == Firmware::Uefi { "uefi" } else { "bios" };
        let args = ["machine", "add", name, "--mac", mac, "--firmware", word, "--image", "golden"];
        show.command(&format!("ggnet {}", args.join(" ")));
        server.ggnet(&args)?;
        let machine = api.machine(name)?;
        show.line(&format!("id {}, MAC address {mac}, a reboot gives a clean disk", machine.id));
        let slot = slots.pop().context("no place for a machine")?;
        pcs.push(Pc::new(name, firmware, mac, &machine, server, slot));
    }
    Ok(pcs)
}

fn boot_both(show: &mut Show, server: &GgnetServer, api: &Api, pcs: &mut [Pc]) -> Result<()> {
    show.step("Switching both on: firmware → iPXE → boot script by HTTP → SAN boot by iSCSI → Linux");
    show.command("ggnet session watch");
    stages::follow(show, api, pcs, Pc::power_on)?;
    ggnet(show, server, &["session", "list"])?;
    for pc in pcs {
        let line = pc.last_boot()?.clone();
        let session = api.active(pc.machine)?;
        show.line(&format!(
            "{}: {} {} root={} target={}",
            pc.name, line.firmware, line.transport, line.root, line.target
        ));
        show.claim(&format!("{} runs from its own iSCSI target, logged in with CHAP", pc.name), {
            line.transport == "iscsi" && line.target == session.target_iqn.to_string() && line.chap.is_some()
        });
    }
    Ok(())
}

/// Types a command of the command line tool and shows its answer.
fn ggnet(show: &Show, server: &GgnetServer, args: &[&str]) -> Result<()> {
    show.command(&format!("ggnet {}", args.join(" ")));
    show.line(server.ggnet(args)?.trim_end());
    Ok(())
}

fn different_disks(show: &mut Show, pcs: &mut [Pc]) -> Result<()> {
    show.step("Writing a different file in each");
    let names: Vec<&str> = pcs.iter().map(|pc| pc.name).collect();
    for pc in pcs.iter_mut() {
        let command = format!("echo 'written by {0}' >/root/{0}.txt && sync", pc.name);
        show.guest_command(pc.name, &command);
        pc.guest_mut()?.sh(&command)?;
    }
    for pc in pcs.iter_mut() {
        let listed = pc.guest_mut()?.sh("ls /root")?;
        show.guest_command(pc.name, "ls /root");
        show.line(&listed);
        let own = listed.split_whitespace().filter(|f| f.ends_with(".txt")).collect::<Vec<_>>();
        show.claim(&format!("{} has its own file and not {}'s", pc.name, other(&names, pc.name)), {
            own == [format!("{}.txt", pc.name)]
        });
    }
    Ok(())
}

fn other<'a>(names: &[&'a str], name: &str) -> &'a str {
    names.iter().find(|n| **n != name).copied().unwrap_or_default()
}

fn reboot_one(show: &mut Show, api: &Api, pcs: &mut [Pc]) -> Result<()> {
    show.step("Rebooting pc-bios: a reboot gives a clean disk");
    let (bios, rest) = pcs.split_first_mut().context("no machine")?;
    stages::follow(show, api, std::slice::from_mut(bios), Pc::reboot)?;
    let line = bios.last_boot()?.clone();
    show.guest_command(bios.name, "ls /root/*.txt");
    let gone = bios.guest_mut()?.shell("ls /root/*.txt")?;
    show.line(gone.text.trim());
    show.claim("pc-bios is clean again: its file is gone, and its disk says that this is its first boot", {
        gone.code != 0 && line.boots == 1
    });
    for pc in rest {
        let command = format!("cat /root/{}.txt", pc.name);
        let kept = pc.guest_mut()?.sh(&command)?;
        show.claim(&format!("{} ran on meanwhile and still has its file", pc.name), {
            kept == format!("written by {}", pc.name)
        });
    }
    Ok(())
}
