//! The suite of [`DhcpBackend`]: see [`crate::dhcp_behaviour`].

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use async_trait::async_trait;

use super::{
    Fixture,
    attached::Witness,
    common::{Declarative, Specs, assert_whole, common_cases, id},
};
use crate::{
    error::Result,
    nouns::{DeviceType, Firmware, MacAddr, ResourceId},
    ports::{
        DhcpBackend, DhcpBackendExt as _, DhcpChange, DhcpHost, Listed, NullObserver, Observation, Removal,
        SpecDigest,
    },
};

/// Runs the behaviour suite of [`DhcpBackend`] on the backend of a [`DhcpFixture`](crate::testkit::suite::DhcpFixture).
///
/// ```text
/// ggnet_core::dhcp_behaviour!(my_dhcp, MyFixture::new());
/// ```
/// `not_run: […]` as for [`target_behaviour`](crate::target_behaviour).
#[macro_export]
macro_rules! dhcp_behaviour {
    ($module:ident, $fixture:expr) => { $crate::dhcp_behaviour!(@ $module, $fixture, None); };
    ($module:ident, $fixture:expr, not_run: [$($case:ident),* $(,)?]) => {
        $crate::dhcp_behaviour!(@ $module, $fixture, Some(&[$(stringify!($case)),*]));
    };
    (@ $module:ident, $fixture:expr, $expected:expr) => {
        $crate::dhcp_cases!([$crate::__behaviour] $module, $fixture, dhcp, $expected,);
    };
}

/// Passes the suite's cases to another macro, after its own arguments: for fixtures whose cases must run in a special environment.
///
/// ```text
/// ggnet_core::dhcp_cases!([my_macro] arguments,);        // my_macro!(arguments, [an_empty_backend_lists_nothing, …]);
/// ```
#[macro_export]
macro_rules! dhcp_cases {
    ([$($macro:tt)*] $($arguments:tt)*) => {
        $($macro)*!($($arguments)* [
            an_empty_backend_lists_nothing,
            ensure_twice_equals_once,
            list_shows_exactly_what_was_ensured,
            get_shows_what_list_shows,
            remove_of_nothing_is_success,
            what_was_removed_can_be_made_again,
            a_changed_spec_converges_or_is_busy,
            fifty_ensures_at_once_of_different_names,
            fifty_ensures_at_once_of_one_name,
            ensures_and_removes_at_once_of_one_name,
            a_dropped_ensure_is_completed_by_the_next,
            a_dropped_ensure_is_undone_by_remove,
            a_dropped_remove_is_completed_by_the_next,
            a_dropped_change_is_completed_by_the_next,
            what_exists_is_adopted_after_a_crash,
            a_crash_within_a_call_is_mended,
            what_is_not_ours_is_left_alone,
            a_set_of_changes_is_made_whole,
            an_ensured_machine_is_answered,
            a_removed_machine_is_answered_no_more,
            every_card_of_a_machine_is_answered,
            a_replaced_card_is_answered_no_more,
            a_reserved_address_is_given,
            what_is_answered_is_observed,
        ]);
    };
}

/// Makes DHCP backends, and machines that ask them.
///
/// The fixture configures the backend so that it has a boot file for a PC with UEFI, and gives none to a machine without an entry. Reserved
/// addresses are in 192.0.2.0/24.
#[async_trait]
pub trait DhcpFixture: Fixture<dyn DhcpBackend> {
    /// Whether machines can ask here. If not, the cases that need one are not run.
    fn can_ask(&self) -> bool {
        false
    }

    /// Acts as a machine's firmware (a PC with UEFI, option 93 = 7) that asks for a boot file by PXE. Returns an empty answer if none came
    /// within the time that firmware waits.
    async fn ask(&self, mac: MacAddr) -> DhcpAnswer {
        let _ = mac;
        DhcpAnswer::default()
    }
}

/// The answer to a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DhcpAnswer {
    /// The boot file's name or URL; `None`: it falls through to its next boot device.
    pub boot_file: Option<String>,
    /// The address it may use, from a backend that gives out addresses.
    pub address: Option<IpAddr>,
}

/// The marker of this port.
pub struct Dhcp;

#[async_trait]
impl Declarative for Dhcp {
    type Port = dyn DhcpBackend;
    type Spec = DhcpHost;

    fn attach(port: &dyn DhcpBackend) {
        port.attach(Arc::new(NullObserver));
    }

    fn digest(spec: &DhcpHost) -> SpecDigest {
        spec.digest()
    }

    fn id(spec: &DhcpHost) -> ResourceId {
        spec.id.clone()
    }

    // The port declares nothing about it: entries in the memory of our process are lost with it, and the reconciler creates them again.
    fn survives(_: &dyn DhcpBackend) -> bool {
        false
    }

    async fn ensure(port: &dyn DhcpBackend, spec: &DhcpHost) -> Result<String> {
        port.ensure(spec).await.map(|()| String::new())
    }

    async fn remove(port: &dyn DhcpBackend, id: &ResourceId, _: Removal) -> Result<()> {
        port.remove(id).await
    }

    async fn get(port: &dyn DhcpBackend, id: &ResourceId) -> Result<Option<Listed>> {
        port.get(id).await
    }

    async fn list(port: &dyn DhcpBackend) -> Result<Vec<Listed>> {
        port.list().await
    }
}

/// The machine behind a name: name, address and cards follow from it, so that no two machines share one.
fn host(id: &ResourceId, variant: u8) -> DhcpHost {
    let digest = SpecDigest::of([id.as_str().as_bytes()]).short();
    let octet = |n: usize| u8::from_str_radix(&digest[n * 2..n * 2 + 2], 16).expect("hexadecimal");
    let mac = |last: u8| {
        MacAddr::new([0x52, octet(0), octet(1), octet(2), octet(3), last]).expect("a unicast address")
    };
    DhcpHost {
        id: id.clone(),
        name: format!("pc-{digest}").parse().expect("a valid name"),
        macs: vec![mac(variant)],
        fixed_address: None,
        device_type: DeviceType::X64,
    }
}

#[async_trait]
impl<F: DhcpFixture> Specs<Dhcp> for F {
    async fn spec(&self, id: &ResourceId, variant: u8) -> DhcpHost {
        host(id, variant)
    }
}

/// Why a case cannot run on this fixture's backend; `None`: it can.
pub async fn not_run(f: &impl DhcpFixture, case: &str) -> Option<String> {
    let can = f.fresh().await.capabilities();
    let lacks = |so: bool, why: &str| (!so).then(|| why.to_owned());
    let machine = || lacks(f.can_ask(), "the fixture has no machine that asks");
    match case {
        "what_is_not_ours_is_left_alone" => lacks(f.has_foreign(), "the fixture makes no foreign object"),
        "an_ensured_machine_is_answered"
        | "a_removed_machine_is_answered_no_more"
        | "every_card_of_a_machine_is_answered"
        | "a_replaced_card_is_answered_no_more" => machine(),
        "a_reserved_address_is_given" => machine().or_else(|| lacks(can.leases, "it gives out no addresses")),
        "what_is_answered_is_observed" => {
            machine().or_else(|| lacks(can.observes, "it does not report what it answers"))
        }
        _ => None,
    }
}

common_cases!(Dhcp, DhcpFixture:
    /// Nothing is listed at first.
    an_empty_backend_lists_nothing,
    /// The same `ensure` again changes nothing.
    ensure_twice_equals_once,
    /// `list` is what was ensured and not removed.
    list_shows_exactly_what_was_ensured,
    /// `get` is `list` for one name.
    get_shows_what_list_shows,
    /// Removing an absent object succeeds, for every `how`.
    remove_of_nothing_is_success,
    /// A name can be used again.
    what_was_removed_can_be_made_again,
    /// A changed spec is applied completely, or it is refused and nothing changes.
    a_changed_spec_converges_or_is_busy,
    /// Concurrent calls for different names.
    fifty_ensures_at_once_of_different_names,
    /// The same call from many callers at once.
    fifty_ensures_at_once_of_one_name,
    /// Concurrent creation and removal of one object.
    ensures_and_removes_at_once_of_one_name,
    /// `ensure` dropped at every place, then again.
    a_dropped_ensure_is_completed_by_the_next,
    /// `ensure` dropped at every place, then removed.
    a_dropped_ensure_is_undone_by_remove,
    /// `remove` dropped at every place, then again.
    a_dropped_remove_is_completed_by_the_next,
    /// `ensure` of a changed spec dropped at every place, then again.
    a_dropped_change_is_completed_by_the_next,
    /// A new process finds or creates again, and removes, the objects of the old one.
    what_exists_is_adopted_after_a_crash,
    /// A process that dies within a call leaves nothing that the next one cannot repair.
    a_crash_within_a_call_is_mended,
    /// Entries of others are not listed and not touched.
    what_is_not_ours_is_left_alone,
);

/// Many changes in one call: machines that are new, that changed, that are the same, that go, and that never were.
pub async fn a_set_of_changes_is_made_whole(f: &impl DhcpFixture) {
    let (port, _) = serve(f).await;
    let [new, changed, same, gone] = std::array::from_fn(|_| host(&id(), 0));
    for host in [&changed, &same, &gone] {
        port.ensure(host).await.expect("ensure");
    }
    let changed = host(&changed.id, 1);
    let set = [
        DhcpChange::Ensure(new.clone()),
        DhcpChange::Ensure(changed.clone()),
        DhcpChange::Ensure(same.clone()),
        DhcpChange::Remove(gone.id),
        DhcpChange::Remove(id()),
    ];
    for _ in 0..2 {
        let refused = port.apply(&set).await.expect("apply");
        assert!(refused.is_empty(), "{refused:?}");
        assert_whole::<Dhcp>(port.as_ref(), &[new.clone(), changed.clone(), same.clone()]).await;
    }
    assert!(port.apply(&[]).await.expect("nothing to do").is_empty());
}

async fn serve(f: &impl DhcpFixture) -> (Arc<dyn DhcpBackend>, Arc<Witness>) {
    let (port, witness) = (f.fresh().await, Arc::new(Witness::default()));
    port.attach(Arc::clone(&witness) as _);
    (port, witness)
}

async fn boots(f: &impl DhcpFixture, mac: MacAddr) -> bool {
    f.ask(mac).await.boot_file.is_some()
}

/// From the moment that `ensure` returns, and no other machine is.
pub async fn an_ensured_machine_is_answered(f: &impl DhcpFixture) {
    let (port, _) = serve(f).await;
    let (a, b) = (host(&id(), 0), host(&id(), 0));
    port.ensure(&a).await.expect("ensure");
    assert!(boots(f, a.macs[0]).await, "it has an entry for this machine");
    assert!(!boots(f, b.macs[0]).await, "it has no entry for that one");
    port.ensure(&b).await.expect("ensure");
    assert!(boots(f, a.macs[0]).await && boots(f, b.macs[0]).await, "it has entries for both");
}

/// From the moment that `remove` returns.
pub async fn a_removed_machine_is_answered_no_more(f: &impl DhcpFixture) {
    let (port, _) = serve(f).await;
    let (a, b) = (host(&id(), 0), host(&id(), 0));
    port.ensure(&a).await.expect("ensure");
    port.ensure(&b).await.expect("ensure");
    port.remove(&a.id).await.expect("remove");
    assert!(!boots(f, a.macs[0]).await, "the entry of this machine was removed");
    assert!(boots(f, b.macs[0]).await, "but not of that one");
}

/// Whichever card the firmware boots from.
pub async fn every_card_of_a_machine_is_answered(f: &impl DhcpFixture) {
    let (port, _) = serve(f).await;
    let mut a = host(&id(), 0);
    let others = [host(&a.id, 1).macs[0], host(&a.id, 2).macs[0]];
    a.macs.extend(others);
    port.ensure(&a).await.expect("ensure");
    for mac in a.macs {
        assert!(boots(f, mac).await, "{mac}");
    }
}

/// A changed entry leaves nothing of the old one.
pub async fn a_replaced_card_is_answered_no_more(f: &impl DhcpFixture) {
    let (port, _) = serve(f).await;
    let old = host(&id(), 0);
    let new = host(&old.id, 1);
    port.ensure(&old).await.expect("ensure");
    port.ensure(&new).await.expect("ensure");
    assert!(boots(f, new.macs[0]).await, "the new card");
    assert!(!boots(f, old.macs[0]).await, "the old card");
}

/// A backend that gives out addresses honours the reserved one.
pub async fn a_reserved_address_is_given(f: &impl DhcpFixture) {
    let (port, _) = serve(f).await;
    let mut a = host(&id(), 0);
    let address = IpAddr::from(Ipv4Addr::new(192, 0, 2, 77));
    a.fixed_address = Some(address);
    port.ensure(&a).await.expect("ensure");
    let answer = f.ask(a.macs[0]).await;
    assert!(answer.boot_file.is_some(), "{answer:?}");
    assert_eq!(answer.address, Some(address));
}

/// The first stage of a boot, and unregistered machines.
pub async fn what_is_answered_is_observed(f: &impl DhcpFixture) {
    let (port, witness) = serve(f).await;
    let (a, b) = (host(&id(), 0), host(&id(), 0));
    port.ensure(&a).await.expect("ensure");
    f.ask(a.macs[0]).await;
    f.ask(b.macs[0]).await;
    let offered = |o: &Observation| matches!(o, Observation::AddressOffered { mac, firmware: Firmware::Uefi, ipxe: false, .. } if *mac == a.macs[0]);
    witness.sees("the offer", offered).await;
    let unknown = |o: &Observation| matches!(o, Observation::UnknownAsked { mac, .. } if *mac == b.macs[0]);
    witness.sees("the machine that nobody registered", unknown).await;
}
