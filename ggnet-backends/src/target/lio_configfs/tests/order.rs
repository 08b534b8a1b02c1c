//! The writes and their order.

use ggnet_core::error::ErrorKind;

use super::*;

#[test]
fn a_target_is_set_up_in_order_and_enabled_last() {
    let lab = Lab::new();
    let want = lab.want(&lab.spec(chap(1, "TopSecret1234567")));
    let disk = lab.dir.path().join("disk");
    let ops = lines(&lab.plan(&want), &want);
    let adapter = want.names.adapter(0, want.luns[0].store.plugin());
    let device = format!("{adapter}/0ddba11e.0196f0d200007000800000000000000{}.7.0", 1);
    let expected = [
        "mkdir TARGET".to_owned(),
        format!("mkdir {adapter}"),
        format!("mkdir {device}"),
        format!(
            "write {device}/control {:?}",
            format!("fd_dev_name={},fd_dev_size=4096,fd_buffered_io=1", disk.display())
        ),
        format!("write {device}/udev_path {:?}", disk.to_str().unwrap()),
        format!("write {device}/wwn/vpd_unit_serial \"5e71a1\""),
        format!("write {device}/attrib/emulate_3pc \"0\""),
        format!("write {device}/enable \"1\""),
        "mkdir TPG".into(),
        "write TPG/attrib/generate_node_acls \"0\"".into(),
        "mkdir TPG/lun/lun_0".into(),
        format!("link TPG/lun/lun_0/ggnet → {device}"),
        "mkdir TPG/np/127.0.0.1:3260".into(),
        "mkdir TPG/acls/iqn.2026-11.local.ggnet:pc-1".into(),
        "mkdir TPG/acls/iqn.2026-11.local.ggnet:pc-1/lun_0".into(),
        "link TPG/acls/iqn.2026-11.local.ggnet:pc-1/lun_0/ggnet → TPG/lun/lun_0".into(),
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/userid \"user-1\"".into(),
        "write TPG/acls/iqn.2026-11.local.ggnet:pc-1/auth/password Secret(…)".into(),
        "write TPG/attrib/authentication \"1\"".into(),
        "write TPG/attrib/cache_dynamic_acls \"0\"".into(),
        "write TPG/attrib/demo_mode_write_protect \"1\"".into(),
        "write TPG/attrib/demo_mode_discovery \"0\"".into(),
        "write TPG/enable \"1\"".into(),
    ];
    assert_eq!(ops, expected);
}

#[test]
fn a_target_is_taken_down_in_order_and_its_name_goes_last() {
    let lab = Lab::new();
    let spec = lab.spec(only(1));
    let before = lab.everything();
    lab.ensure(&spec);
    let want = lab.want(&spec);
    let ops = plan::take_down(&want.names.target(), &lab.have(&want));
    let adapter = want.names.adapter(0, want.luns[0].store.plugin());
    let expected = [
        "write TPG/enable \"0\"".to_owned(),
        "unlink TPG/acls/iqn.2026-11.local.ggnet:pc-1/lun_0/ggnet".into(),
        "rmdir TPG/acls/iqn.2026-11.local.ggnet:pc-1/lun_0".into(),
        "rmdir TPG/acls/iqn.2026-11.local.ggnet:pc-1".into(),
        "rmdir TPG/np/127.0.0.1:3260".into(),
        "unlink TPG/lun/lun_0/ggnet".into(),
        "rmdir TPG/lun/lun_0".into(),
        "rmdir TPG".into(),
        "flush disk".into(),
        format!("rmdir {adapter}/{}", want.names.device(0)),
        format!("rmdir {adapter}"),
        "rmdir TARGET".into(),
    ];
    assert_eq!(lines(&ops, &want), expected);
    lab.apply(&ops);
    assert_eq!(lab.everything(), before);
    assert_eq!(plan::take_down(&want.names.target(), &lab.have(&want)), [], "nothing to remove of nothing");
}

#[test]
fn values_are_written_exactly_and_without_a_newline() {
    let lab = Lab::new();
    let spec = lab.spec(chap(1, "TopSecret1234567"));
    lab.ensure(&spec);
    let acl = format!("{}/acls/{}", lab.want(&spec).names.group(), initiator(1));
    let read = |name: &str| fs::read_to_string(lab.tree.root().join(&acl).join(name)).unwrap();
    assert_eq!((read("auth/userid"), read("auth/password")), ("user-1".into(), "TopSecret1234567".into()));
}

#[test]
fn a_block_device_and_a_read_only_one_are_told_as_such() {
    let lab = Lab::new();
    let mut spec = lab.spec(Access::Shared);
    spec.disks.insert(0, Disk::Device { path: "/dev/loop0".into() });
    let want = lab.want(&spec);
    let ops = lines(&lab.plan(&want), &want);
    assert!(ops[1].starts_with("mkdir core/iblock_"), "{ops:?}");
    assert!(ops[3].ends_with("control \"udev_path=/dev/loop0,readonly=1\""), "{ops:?}");
    assert!(ops.contains(&"write TPG/attrib/generate_node_acls \"1\"".to_owned()), "{ops:?}");
    assert!(!ops.iter().any(|o| o.contains("/acls/")), "{ops:?}");
}

#[test]
fn the_serial_and_the_model_do_not_depend_on_the_generation() {
    let lab = Lab::new();
    let mut specs = [lab.spec(only(1)), lab.spec(only(1))];
    specs[1].id = format!("{}8", lab.id().as_str().trim_end_matches('7')).parse().unwrap();
    specs[1].iqn = Iqn::target(&lab.prefix, &lab.instance, &specs[1].id).unwrap();
    let wwn = |spec: &Wanted| {
        let ops = lab.ensure(spec).into_iter();
        let wwn = |op| match op {
            Op::Write(path, value) => Some((path.rsplit_once("/wwn/")?.1.to_owned(), value)),
            _ => None,
        };
        ops.filter_map(wwn).collect::<Vec<_>>()
    };
    assert_eq!(wwn(&specs[0]), wwn(&specs[1]));
    assert_ne!(
        lab.names(&specs[0].id).adapter(0, lab.want(&specs[0]).luns[0].store.plugin()),
        lab.names(&specs[1].id).adapter(0, lab.want(&specs[1]).luns[0].store.plugin()),
    );
}

#[test]
fn what_the_kernel_would_misread_is_refused() {
    let lab = Lab::new();
    let refused = |spec: Wanted| {
        let e = Want::of(&spec, &spec.disks, lab.names(&spec.id), &lab.config).unwrap_err();
        assert!(!e.report().contains("hunter"), "{}", e.report());
        e.kind()
    };
    for secret in ["", "NULLhunter123456", "hunter2\n", "hunter 2"] {
        assert_eq!(refused(lab.spec(chap(1, secret))), ErrorKind::Invalid, "{secret:?}");
    }
    for path in ["relative", "/a,fd_dev_size=1", "/a\nb", "/a b", "/a\0b", "/a\u{7f}"] {
        let mut spec = lab.spec(only(1));
        spec.disks.insert(0, Disk::File { path: path.into(), format: ImageFormat::Raw });
        assert_eq!(refused(spec), ErrorKind::Invalid, "{path:?}");
    }
    let mut spec = lab.spec(only(1));
    spec.disks.insert(0, Disk::File { path: "/nonexistent/ggnet".into(), format: ImageFormat::Raw });
    assert_eq!(refused(spec), ErrorKind::NotFound);
    let mut spec = lab.spec(only(1));
    spec.disks.insert(0, Disk::File { path: lab.dir.path().join("disk"), format: ImageFormat::Qcow2 });
    assert_eq!(refused(spec), ErrorKind::Unsupported);
    let mut spec = lab.spec(only(1));
    let twice = spec.luns[0].clone();
    spec.luns.push(twice);
    assert_eq!(refused(spec), ErrorKind::Invalid);
    let mut spec = lab.spec(only(1));
    spec.luns[0].serial = "a b".into();
    assert_eq!(refused(spec), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_tree_that_is_not_there_is_unknown_and_not_empty() {
    use ggnet_core::ports::{Health, Removal, TargetBackend as _};

    let lab = Lab::new();
    let backend =
        super::super::LioConfigfs::start(lab.config.clone(), lab.prefix.clone(), lab.instance.clone());
    let backend = backend.unwrap();
    assert_eq!(backend.list().await.unwrap(), []);
    assert_eq!(backend.health().await, Health::Up);
    fs::remove_dir_all(&lab.config.root).unwrap();
    assert_eq!(backend.list().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(backend.connections().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let removed = backend.remove(&lab.id(), Removal::Force).await;
    assert_eq!(removed.unwrap_err().kind(), ErrorKind::Unavailable);
    let Health::Down(why) = backend.health().await else { panic!("it is down") };
    assert!(why.contains("modprobe"), "{why}");
}
