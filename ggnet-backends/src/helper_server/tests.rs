//! Client and server of the helper over a real socket, with a plain folder in the place of configfs.
#![expect(clippy::disallowed_methods, reason = "files of tests need not survive a power cut")]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use ggnet_core::{
    error::{Error, ErrorKind, Result, code},
    nouns::Secret,
};
use tokio::{net::UnixListener, runtime::Runtime};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    helper::*,
    lio::{Op, Value},
    owner::{Owner, Uid},
    target::lio_configfs::{
        have::Shown,
        plan,
        tests::{Lab, chap, initiator, lines, only},
    },
};

/// A user that is neither root nor the server's user.
const STRANGER: u32 = 65_533;

/// A helper for a lab's tree and disks, until it is dropped.
struct Root {
    socket: PathBuf,
    _stop: tokio_util::sync::DropGuard,
    _runtime: Runtime,
}

impl Root {
    fn of(lab: &Lab) -> Self {
        let me = lab.dir.path().metadata().unwrap();
        Self::for_owner(lab, Owner::new(me.uid(), me.gid()))
    }

    fn for_owner(lab: &Lab, owner: Owner) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let socket = lab.dir.path().join("helper.sock");
        let listener = runtime.block_on(async { UnixListener::bind(&socket).unwrap() });
        let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        // So that another user is rejected because of its user ID, not because of the file's mode.
        open(&socket, 0o666);
        open(lab.dir.path(), 0o755);
        let stop = CancellationToken::new();
        runtime.spawn(serve(listener, duties(lab, owner), stop.clone()));
        Self { socket, _stop: stop.drop_guard(), _runtime: runtime }
    }

    fn client(&self) -> Helper {
        Helper::at(&self.socket)
    }

    /// Sends exactly these bytes and returns the response as text.
    fn send(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        // The request may be rejected before its end.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }
}

fn duties(lab: &Lab, owner: Owner) -> Duties {
    let instance = lab.dir.path().join("instance");
    fs::write(&instance, format!("{}\n", lab.instance)).unwrap();
    let root = lab.tree.root().to_owned();
    let target = TargetDuty::new(root, lab.prefix.clone(), instance, vec![lab.dir.path().to_owned()]);
    Duties { owner, target: Some(target), units: BTreeMap::new() }
}

/// The response to a user that is neither root nor the server's user.
fn as_stranger<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    Owner::new(STRANGER, STRANGER).run(|| Ok(work())).unwrap()
}

/// A plan that creates the lab's target.
fn setting_up(lab: &Lab) -> Vec<Op> {
    lab.plan(&lab.want(&lab.spec(chap(1, "TopSecret1234567"))))
}

fn kind<T: std::fmt::Debug>(outcome: Result<T>) -> ErrorKind {
    outcome.unwrap_err().kind()
}

#[test]
fn an_error_travels_whole() {
    let e = Error::new(code::target_in_use("iqn.2026-11.test:a"), "It is in use").with_hint("Wait");
    let e = e.retryable(false).with_backend("lio-configfs").with_reason("a reason").with_source("a cause");
    let line = encode(&Answer::Failed(e.clone())).unwrap();
    assert_eq!(decode::<Answer>(&line).unwrap(), Answer::Failed(e));
}

#[test]
fn the_same_changes_arrive_as_without_it() {
    let (direct, mut helped) = (Lab::new(), Lab::new());
    let root = Root::of(&helped);
    let client = root.client();
    helped.apply = Some(Box::new(move |id, op| client.apply(id, std::slice::from_ref(op))));
    let everything = |lab: &Lab| -> Vec<String> {
        let here = lab.dir.path().to_str().unwrap().to_owned();
        lab.everything().into_iter().map(|line| line.replace(&here, "LAB")).collect()
    };
    let walk = [
        (only(1), None),
        (chap(1, "TopSecret1234567"), Some(1)),
        (chap(2, "Other12345678901"), None),
        (ggnet_core::ports::Access::Shared, None),
        (only(2), None),
    ];
    for (access, live) in walk {
        let done = [&direct, &helped].map(|lab| {
            let spec = lab.spec(access.clone());
            let (ops, want) = (lab.ensure(&spec), lab.want(&spec));
            if let Some(n) = live {
                lab.log_in(&want, &initiator(n));
            }
            let here = lab.dir.path().to_str().unwrap().to_owned();
            lines(&ops, &want).into_iter().map(|line| line.replace(&here, "LAB")).collect::<Vec<_>>()
        });
        assert_eq!(done[0], done[1]);
        assert_eq!(everything(&direct), everything(&helped));
    }
    for lab in [&direct, &helped] {
        let want = lab.want(&lab.spec(only(2)));
        lab.apply(&plan::take_down(&want.names.target(), &lab.have(&want)));
    }
    assert_eq!(everything(&direct), everything(&helped));
    assert!(!everything(&helped).iter().any(|line| line.contains("iqn.")), "{:?}", everything(&helped));
}

#[test]
fn who_is_neither_root_nor_the_servers_user_is_refused_unheard() {
    let lab = Lab::new();
    let me = lab.dir.path().metadata().unwrap().uid();
    let other = Owner::new(me + 1, me + 1);
    let root = Root::for_owner(&lab, other);
    let (before, client, ops, id) = (lab.everything(), root.client(), setting_up(&lab), lab.id());
    let ask = || (client.apply(&id, &ops), client.load_target(), client.state("dnsmasq.service").map(drop));
    // Root can become any user; otherwise the helper is for another user than ours.
    let (apply, load, state) = if me == Uid::ROOT.as_raw() { as_stranger(ask) } else { ask() };
    for refused in [apply, load, state] {
        let e = refused.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Permission, "{e}");
        assert!(e.message().starts_with("User id "), "{e}");
        assert!(e.hint().unwrap().contains("--user"), "{e}");
    }
    assert_eq!(lab.everything(), before);
}

#[test]
fn what_is_not_ggnets_is_refused_and_nothing_before_it_is_done() {
    let lab = Lab::new();
    let root = Root::of(&lab);
    let before = lab.everything();
    let names = lab.names(&lab.id());
    let (target, group) = (names.target(), names.group());
    let Some(Op::Mkdir(adapter)) =
        setting_up(&lab).into_iter().find(|op| matches!(op, Op::Mkdir(p) if p.starts_with("core/")))
    else {
        panic!("a backstore")
    };
    let device = format!("{adapter}/{}", names.device(0));
    let disk = lab.dir.path().join("disk").display().to_string();
    let plain = |path: &str, value: &str| Op::Write(path.to_owned(), Value::Plain(value.to_owned()));
    let secret = |path: &str, value: &str| Op::Write(path.to_owned(), Value::Secret(Secret::new(value)));
    let make = |path: String| Op::Mkdir(path);
    let bad = [
        // Outside the tree.
        make("../outside".into()),
        make(format!("{target}/../../../outside")),
        make("/etc/outside".into()),
        make(String::new()),
        make(format!("{target}//tpgt_1")),
        make(format!("{target}/./tpgt_1")),
        make("iscsi".into()),
        make("core".into()),
        plain("../../../../proc/sysrq-trigger", "b"),
        plain("core/../../outside/enable", "1"),
        // Other owners: another resource, another GGnet, an operator's own target, another fabric.
        make(format!("{}8", target.trim_end_matches('7'))),
        make(target.replace("0ddba11e", "f0e1d2c3")),
        make("iscsi/iqn.2003-01.org.linux-iscsi.host:disk".into()),
        Op::Rmdir("core/fileio_3/operators".into()),
        make(format!("{adapter}/operators")),
        make(format!("{adapter}/{}", names.device(0).replace("0ddba11e", "f0e1d2c3"))),
        make("core/fileio_3".into()),
        make(adapter.replace("fileio", "pscsi")),
        make(adapter.replace("fileio_", "fileio_+")),
        make(adapter.replace("fileio", "iblock")),
        Op::Rmdir("vhost/naa.5001405b6b6c8d7e".into()),
        plain("iscsi/discovery_auth/password", "NULL"),
        plain("dbroot", "/etc"),
        // Our objects, but operations that GGnet never does.
        make(format!("{group}/np/0.0.0.0")),
        make(format!("{group}/np/127.0.0.1:0")),
        make(format!("{group}/acls/everybody")),
        make(format!("{group}/lun/lun_00")),
        plain(&format!("{group}/param/MaxBurstLength"), "0"),
        plain(&format!("{group}/attrib/prod_mode_write_protect"), "0"),
        plain(&format!("{group}/attrib/authentication"), "2"),
        plain(&format!("{group}/enable"), "1\n"),
        plain(&format!("{group}/acls/a/auth/userid"), "a\nb"),
        plain(&format!("{group}/acls/a/auth/password"), "TopSecret1234567"),
        secret(&format!("{group}/acls/a/auth/userid"), "TopSecret1234567"),
        secret(&format!("{group}/acls/a/auth/password"), "NULL"),
        secret(&format!("{group}/enable"), "1"),
        plain(&format!("{device}/attrib/emulate_3pc"), "1"),
        plain(&format!("{device}/alua/default_tg_pt_gp/alua_write_metadata"), "1"),
        plain(&format!("{device}/enable"), "0"),
        // Disks.
        plain(&format!("{device}/control"), "fd_dev_name=/etc/shadow,fd_dev_size=1"),
        plain(&format!("{device}/control"), "udev_path=/dev/sda"),
        plain(&format!("{device}/control"), &format!("fd_dev_name={disk}")),
        plain(&format!("{device}/control"), &format!("fd_dev_name={disk},fd_dev_size=1,fd_async_io=1")),
        plain(&format!("{device}/control"), &format!("fd_dev_name={disk}/../../x,fd_dev_size=1")),
        plain(
            &format!("{device}/control"),
            &format!("fd_dev_name={disk},fd_dev_name=/etc/shadow,fd_dev_size=1"),
        ),
        plain(&format!("{device}/udev_path"), "/etc/shadow"),
        Op::Flush("/etc/shadow".into()),
        Op::Flush("relative".into()),
        Op::Flush(lab.dir.path().into()),
        // Links.
        Op::Link(format!("{group}/lun/lun_0/ggnet"), "core/fileio_3/operators".into()),
        Op::Link(format!("{group}/lun/lun_0/other"), device.clone()),
        Op::Link(format!("{group}/lun/lun_0/ggnet"), "../../outside".into()),
        Op::Link(format!("{group}/lun/lun_0/ggnet"), format!("{group}/lun/lun_0")),
        Op::Link(format!("{target}/ggnet"), device),
        Op::Unlink(format!("{group}/enable")),
        Op::Unlink("iscsi/iqn.2003-01.org.linux-iscsi.host:disk/tpgt_1/lun/lun_0/x".into()),
    ];
    for op in bad {
        let e = root.client().apply(&lab.id(), &[Op::Mkdir(target.clone()), op.clone()]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Permission, "{op:?}: {e}");
        assert!(!e.report().contains("TopSecret"), "{e}");
        assert_eq!(lab.everything(), before, "{op:?}");
    }
    assert!(Path::new("/etc/outside").symlink_metadata().is_err());
}

#[test]
fn a_symbolic_link_leads_nowhere() {
    let lab = Lab::new();
    let root = Root::of(&lab);
    let outside = lab.dir.path().join("outside");
    let names = lab.names(&lab.id());
    fs::create_dir_all(outside.join("tpgt_1")).unwrap();
    let tree = lab.tree.root();
    // In the tree.
    symlink(&outside, tree.join(names.target())).unwrap();
    fs::write(outside.join("tpgt_1/enable"), "0").unwrap();
    let enable = Op::Write(format!("{}/enable", names.group()), Value::Plain("1".into()));
    for op in [enable, Op::Mkdir(format!("{}/np/127.0.0.1:3260", names.group())), Op::Rmdir(names.group())] {
        assert_eq!(kind(root.client().apply(&lab.id(), &[op])), ErrorKind::Permission);
    }
    assert_eq!(fs::read_to_string(outside.join("tpgt_1/enable")).unwrap(), "0");
    fs::remove_file(tree.join(names.target())).unwrap();
    // In the place of a disk, on the path to it, and something that is not a file.
    let control =
        setting_up(&lab).into_iter().find(|op| matches!(op, Op::Write(p, _) if p.ends_with("/control")));
    let Some(Op::Write(control, Value::Plain(line))) = control else { panic!("a control line") };
    fs::create_dir_all(tree.join(&control).parent().unwrap()).unwrap();
    fs::write(tree.join(&control), "").unwrap();
    let at = |name: &str| lab.dir.path().join(name);
    fs::write(at("real"), "").unwrap();
    symlink(at("real"), at("link")).unwrap();
    symlink(lab.dir.path(), at("way")).unwrap();
    let give = |name: &str| {
        let line = line.replace(at("disk").to_str().unwrap(), at(name).to_str().unwrap());
        root.client().apply(&lab.id(), &[Op::Write(control.clone(), Value::Plain(line))])
    };
    for name in ["link", "way/real", "outside", "helper.sock"] {
        assert_eq!(kind(give(name)), ErrorKind::Permission, "{name}");
        assert_eq!(fs::read_to_string(tree.join(&control)).unwrap(), "");
    }
    assert_eq!(kind(give("missing")), ErrorKind::NotFound);
    give("real").unwrap();
}

#[test]
fn a_disk_that_the_servers_user_cannot_reach_is_refused() {
    let lab = Lab::new();
    let me = lab.dir.path().metadata().unwrap();
    // As root, the server's user has no access to the folder; otherwise our own folder is not accessible for us.
    let (owner, mode) = if me.uid() == 0 {
        (Owner::new(STRANGER, STRANGER), 0o700)
    } else {
        (Owner::new(me.uid(), me.gid()), 0)
    };
    let root = Root::for_owner(&lab, owner);
    let shut = lab.dir.path().join("shut");
    fs::create_dir(&shut).unwrap();
    fs::write(shut.join("disk"), "").unwrap();
    fs::set_permissions(&shut, fs::Permissions::from_mode(mode)).unwrap();
    let disk = lab.dir.path().join("disk").display().to_string();
    let ops: Vec<Op> = setting_up(&lab)
        .into_iter()
        .map(|op| match op {
            Op::Write(path, Value::Plain(line)) => {
                Op::Write(path, Value::Plain(line.replace(&disk, shut.join("disk").to_str().unwrap())))
            }
            op => op,
        })
        .collect();
    let before = lab.everything();
    assert_eq!(kind(root.client().apply(&lab.id(), &ops)), ErrorKind::Permission);
    assert_eq!(lab.everything(), before);
}

#[test]
fn garbage_is_refused_without_being_quoted_and_harms_nobody() {
    let lab = Lab::new();
    let root = Root::of(&lab);
    let before = lab.everything();
    let long = vec![b'['; MAX_REQUEST + 1];
    let deep = [vec![b'['; 100_000], vec![b'\n']].concat();
    let questions: [&[u8]; 14] = [
        b"\n",
        b"hunter2\n",
        b"{\"reboot\":\"hunter2\"}\n",
        b"{\"apply\":{\"target\":\"m1.1\",\"ops\":[{\"chmod\":[\"hunter2\",\"0666\"]}]}}\n",
        b"{\"apply\":{\"target\":\"m1.1\",\"ops\":[],\"root\":\"/hunter2\"}}\n",
        b"{\"apply\":{\"target\":\"../hunter2\",\"ops\":[]}}\n",
        b"{\"apply\":{\"target\":\"m1.1\",\"ops\":[{\"write\":[\"a\",{\"secret\":7}]}]}}\n",
        b"{\"unit\":{\"unit\":\"hunter2.service\",\"action\":\"stop\"}}\n",
        b"{\"unit\":{\"unit\":\"a\",\"unit\":\"hunter2\",\"action\":\"state\"}}\n",
        b"\"load_target\"",
        b"\"load_target\"\n\"load_target\"\n",
        b"\xff\xfe\n",
        &long,
        &deep,
    ];
    for question in questions {
        let answer = root.send(question);
        let shown = String::from_utf8_lossy(&question[..question.len().min(80)]);
        // If more is sent than is read, the connection may be closed before the response was read.
        if question.len() <= MAX_REQUEST {
            let Ok(Answer::Failed(failure)) = decode(answer.as_bytes()) else { panic!("{shown}: {answer}") };
            assert_eq!(failure.kind(), ErrorKind::Invalid, "{shown}");
        }
        assert!(!answer.contains("hunter2"), "{answer}");
        assert_eq!(lab.everything(), before, "{shown}");
    }
    assert_eq!(root.send(b""), "", "who says nothing hears nothing");
    root.client().load_target().unwrap();
}

#[test]
fn silent_clients_keep_nobody_from_being_answered() {
    let lab = Lab::new();
    let root = Root::of(&lab);
    let silent: Vec<UnixStream> = (0..50).map(|_| UnixStream::connect(&root.socket).unwrap()).collect();
    root.client().load_target().unwrap();
    drop(silent);
    root.client().load_target().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_end_its_question_is_told_so_and_cut_off() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let lab = Lab::new();
    let me = lab.dir.path().metadata().unwrap();
    let socket = lab.dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(listener, duties(&lab, Owner::new(me.uid(), me.gid())), stop.clone()));
    let mut slow = tokio::net::UnixStream::connect(&socket).await.unwrap();
    slow.write_all(b"\"load_").await.unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).await.unwrap();
    let Answer::Failed(failure) = decode(&answer).unwrap() else { panic!("{answer:?}") };
    assert_eq!(failure.kind(), ErrorKind::Timeout);
    stop.cancel();
    served.await.unwrap();
}

#[test]
fn the_instance_is_read_once_and_another_ones_targets_stay_anothers() {
    let lab = Lab::new();
    let root = Root::of(&lab);
    let (names, client) = (lab.names(&lab.id()), root.client());
    client.apply(&lab.id(), &[Op::Mkdir(names.target())]).unwrap();
    // The server owns the file: its later content is ignored.
    fs::write(lab.dir.path().join("instance"), "f0e1d2c3\n").unwrap();
    let foreign = names.target().replace("0ddba11e", "f0e1d2c3");
    assert_eq!(kind(client.apply(&lab.id(), &[Op::Mkdir(foreign)])), ErrorKind::Permission);
    client.apply(&lab.id(), &[Op::Rmdir(names.target())]).unwrap();
}

#[test]
fn a_unit_that_is_not_named_is_not_managed_and_no_target_means_none() {
    let lab = Lab::new();
    let root = Root::of(&lab);
    let e = root.client().change("ssh.service", Action::Restart).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Permission);
    assert!(e.message().contains("ssh.service") && e.hint().unwrap().contains("--unit"), "{e}");
    drop(root);
    fs::remove_file(lab.dir.path().join("helper.sock")).unwrap();
    let me = lab.dir.path().metadata().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener =
        runtime.block_on(async { UnixListener::bind(lab.dir.path().join("helper.sock")).unwrap() });
    let nothing = Duties { owner: Owner::new(me.uid(), me.gid()), target: None, units: BTreeMap::new() };
    runtime.spawn(serve(listener, nothing, CancellationToken::new()));
    let client = Helper::at(lab.dir.path().join("helper.sock"));
    assert_eq!(kind(client.load_target()), ErrorKind::Permission);
    assert_eq!(kind(client.apply(&lab.id(), &setting_up(&lab))), ErrorKind::Permission);
}

#[test]
fn a_helper_that_is_not_there_is_named_with_the_unit_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("helper.sock");
    for make in [false, true] {
        if make {
            // Nothing listens on it any more.
            drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        }
        let e = Helper::at(&socket).load_target().unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
        assert!(e.is_retryable());
        assert!(e.message().contains(socket.to_str().unwrap()), "{e}");
        assert!(e.hint().unwrap().contains("ggnet-helper.socket"), "{e}");
    }
}

#[test]
fn failures_keep_their_kind_and_secrets_are_shown_by_nothing() {
    let lab = Lab::new();
    let root = Root::of(&lab);
    let ops = setting_up(&lab);
    // The folder in the place of configfs creates no attributes by itself: the first write finds none.
    let e = root.client().apply(&lab.id(), &ops).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    let request = Request::Apply { target: lab.id(), ops };
    assert!(!format!("{request:?}").contains("TopSecret"), "{request:?}");
    let line = encode(&request).unwrap();
    assert_eq!(decode::<Request>(&line).unwrap(), request);
    let cut = decode::<Request>(&line[..line.len() - 3]).unwrap_err();
    assert!(!cut.report().contains("TopSecret"), "{cut}");
}

#[test]
fn without_the_right_to_read_them_secrets_are_written_again_through_it() {
    let mut lab = Lab::new();
    let root = Root::of(&lab);
    lab.ensure(&lab.spec(chap(1, "TopSecret1234567")));
    lab.shown = Shown::WithoutSecrets;
    let want = lab.want(&lab.spec(chap(1, "Other12345678901")));
    let ops = lab.plan(&want);
    assert_eq!(ops.len(), 4, "{ops:?}");
    // The folder in the place of configfs has no attribute that was never written.
    let auth = lab.tree.root().join(want.names.group()).join("acls").join(initiator(1)).join("auth");
    for name in ["userid_mutual", "password_mutual"] {
        fs::File::create(auth.join(name)).unwrap();
    }
    root.client().apply(&lab.id(), &ops).unwrap();
    assert_eq!(fs::read_to_string(auth.join("password")).unwrap(), "Other12345678901");
}
