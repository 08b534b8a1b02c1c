//! Commands against four small units of one target, by two initiators.
//!
//! Input: a byte that chooses a failure (the device call that fails first, and how), then one event after the other:
//!
//! ```text
//!  head: bits 0-1 unit, 2 initiator, 3 data fitted to what the CDB asks, 4-5 what: command | reset | new session | growth
//!  command: CDB 16 | length 2 | data
//! ```

use std::io;
use std::sync::Arc;

use super::super::bytes::{be16, be24, be32, be64, index};
use super::super::scsi::lu::LogicalUnit;
use super::super::scsi::nexus::{Attention, Nexus, Port};
use super::super::scsi::read_write::{MAX_COLLECTED, MAX_COMPARE_BLOCKS};
use super::super::scsi::sense::{Sense, status};
use super::super::scsi::{Action, Plan, Reply, Units, decode, no_unit};
use super::super::workers::Cancel;
use super::super::writes::finish_stream;
use super::super::{Identity, Lun};
use super::Input;
use super::disk::{Disk, Kind, Trouble};

/// Maximum number of events of one input: more would only be slower.
const MAX_EVENTS: usize = 48;
/// The number of conditions that can be reported to a nexus.
const MAX_ATTENTIONS: usize = 9;
/// Maximum number of bytes that a command may collect.
const MAX_OUT: u64 = if MAX_COLLECTED > MAX_COMPARE { MAX_COLLECTED } else { MAX_COMPARE };
const MAX_COMPARE: u64 = 2 * 4096 * MAX_COMPARE_BLOCKS as u64;

const KINDS: [Kind; 4] = [
    Kind { block: 512, blocks: 64, read_only: false, thin: true },
    Kind { block: 4096, blocks: 16, read_only: false, thin: false },
    Kind { block: 512, blocks: 24, read_only: true, thin: true },
    Kind { block: 4096, blocks: 8, read_only: false, thin: true },
];
/// The unit with a removable medium.
const REMOVABLE: usize = 3;

struct Rig {
    units: Units,
    disks: Vec<Arc<Disk>>,
    /// By initiator, then by unit.
    nexuses: [Vec<Arc<Nexus>>; 2],
}

/// Runs the commands, then checks whether the units still work.
pub fn cdb(input: &[u8]) {
    let mut input = Input(input);
    let trouble = input.byte();
    let mut rig = Rig::new(trouble);
    for _ in 0..MAX_EVENTS {
        if input.is_empty() {
            break;
        }
        let head = input.byte();
        let (at, initiator) = (usize::from(head & 3), usize::from(head >> 2 & 1));
        match head >> 4 & 3 {
            0 => {
                let cdb = input.array();
                let length = usize::from(u16::from_be_bytes(input.array())) % 2048;
                rig.command(at, initiator, &cdb, input.take(length), head & 8 != 0);
            }
            1 => rig.unit(at).reset(if head & 8 == 0 { Attention::Reset } else { Attention::PowerOn }),
            2 => rig.new_session(initiator),
            _ => {
                rig.disks[at].grow(8);
            }
        }
    }
    rig.still_serves();
}

/// The four disks, which fail as a byte of the input chooses.
pub(super) fn disks(trouble: u8) -> Vec<Arc<Disk>> {
    let error = [
        io::ErrorKind::StorageFull,
        io::ErrorKind::ReadOnlyFilesystem,
        io::ErrorKind::Other,
        io::ErrorKind::ResourceBusy,
    ][usize::from(trouble >> 6)];
    let after = u32::from(trouble & 0x3f);
    let trouble = (after > 0).then(|| Trouble { after: after - 1, error });
    KINDS.iter().map(|kind| Arc::new(Disk::new(*kind, trouble))).collect()
}

/// The units over them.
pub(super) fn units(disks: &[Arc<Disk>]) -> Units {
    let units = (0u16..).zip(disks).map(|(number, disk)| {
        let identity = Identity {
            serial: format!("serial-{number}"),
            naa: u64::from(number),
            vendor: "GGNET".into(),
            product: "DISK".into(),
            revision: "1".into(),
        };
        let removable = usize::from(number) == REMOVABLE;
        let device = Arc::clone(disk);
        let lun = Lun { number, device, identity, read_only: false, removable };
        LogicalUnit::new(lun, "iqn.2024-01.a:disks".into())
    });
    Units::new(units.collect())
}

fn port(initiator: usize) -> Port {
    Port {
        name: ["iqn.2024-01.a:one", "iqn.2024-01.a:two", "iqn.2024-01.a:late"][initiator].into(),
        isid: [0x80, 0, 0, 0, 0, 1],
    }
}

impl Rig {
    fn new(trouble: u8) -> Self {
        let disks = disks(trouble);
        let mut rig = Self { units: units(&disks), disks, nexuses: [Vec::new(), Vec::new()] };
        rig.new_session(0);
        rig.new_session(1);
        rig
    }

    fn unit(&self, at: usize) -> &Arc<LogicalUnit> {
        let Some(unit) = self.units.get(at) else { unreachable!("all four exist") };
        unit
    }

    fn detach(&mut self, initiator: usize) {
        for (unit, nexus) in self.units.iter().zip(self.nexuses[initiator].drain(..)) {
            unit.detach(&nexus);
        }
    }

    fn new_session(&mut self, initiator: usize) {
        self.detach(initiator);
        self.nexuses[initiator] = self.units.iter().map(|unit| attach(unit, port(initiator))).collect();
    }

    /// One command, as a session would run it.
    fn command(&self, at: usize, initiator: usize, cdb: &[u8; 16], data: &[u8], fit: bool) {
        let (unit, nexus) = (self.unit(at), &self.nexuses[initiator][at]);
        sound(&no_unit(&self.units, cdb), cdb);
        let protected = unit.write_protected();
        let reply = match decode(unit, nexus, &self.units, cdb) {
            Plan::Reply(reply) => reply,
            Plan::Run(action) => action.run(unit, nexus, &self.units, &[], &Cancel::default()),
            Plan::Read { offset, len } => {
                let asked = named(cdb).filter(|_| matches!(cdb[0], 0x08 | 0x28 | 0x88 | 0xa8));
                same_extent(unit, asked, offset, len);
                let mut buf = vec![0; index(len)];
                let read = unit.device.read_at(&mut buf, offset);
                read.map_or_else(|e| Reply::read_failed(&e), |()| Reply::good())
            }
            Plan::Write { offset, len, flush } => {
                assert!(!protected, "a write to a protected unit");
                same_extent(unit, named(cdb), offset, len);
                let data = fitted(data, index(len), fit);
                let (blocks, tail) = data.split_at(data.len() - data.len() % unit.block_len());
                let written = if blocks.is_empty() { Ok(()) } else { unit.device.write_at(blocks, offset) };
                let written =
                    written.and_then(|()| finish_stream(unit, tail, offset + blocks.len() as u64, flush));
                written.map_or_else(|e| Reply::write_failed(&e), |()| Reply::good())
            }
            Plan::Out { len, action } => {
                assert!(len as u64 <= MAX_OUT, "{len} bytes to be collected");
                let data = fitted(data, len, fit);
                if action.exact() && data.len() != len {
                    Reply::check(Sense::cdb(0))
                } else {
                    self.run(action, unit, nexus, &data)
                }
            }
        };
        sound(&reply, cdb);
        self.wrote_what_it_named(at, cdb, protected);
    }

    fn run(&self, action: Action, unit: &LogicalUnit, nexus: &Arc<Nexus>, data: &[u8]) -> Reply {
        let reply = action.run(unit, nexus, &self.units, data, &Cancel::default());
        assert!(reply.data.is_empty(), "data both ways");
        reply
    }

    /// Checks that nothing was written outside the blocks that the CDB names, and nothing at all if it names none.
    fn wrote_what_it_named(&self, at: usize, cdb: &[u8; 16], protected: bool) {
        for (i, disk) in self.disks.iter().enumerate() {
            let shift = self.unit(i).shift();
            for range in disk.take_written() {
                let allowed = match cdb[0] {
                    // The names are in the parameter list; the disk itself sees to its bounds.
                    0x83 => true,
                    _ if i != at || protected => false,
                    0x42 => true,
                    0x0a | 0x2a | 0x8a | 0xaa | 0x2e | 0x8e | 0xae | 0x41 | 0x93 | 0x89 | 0x8b => named(cdb)
                        .is_some_and(|(lba, count)| {
                            range.start >= lba << shift && range.end <= (lba + count) << shift
                        }),
                    _ => false,
                };
                assert!(allowed, "{cdb:02x?} to unit {at} wrote {range:?} on unit {i}");
            }
        }
    }

    /// Ends the sessions and repairs the disks: a new session must then find every unit ready.
    fn still_serves(mut self) {
        self.detach(0);
        self.detach(1);
        for (at, unit) in self.units.iter().enumerate() {
            self.disks[at].repair();
            let late = attach(unit, port(2));
            let ask = |cdb: [u8; 16]| match decode(unit, &late, &self.units, &cdb) {
                Plan::Reply(reply) => Some(reply),
                _ => None,
            };
            let test_unit_ready = [0; 16];
            if unit.removable {
                // Put the medium back: START with LOEJ.
                let mut start = [0; 16];
                (start[0], start[4]) = (0x1b, 3);
                assert_eq!(ask(start), Some(Reply::good()), "the medium cannot be put back");
            }
            let ready = (0..=MAX_ATTENTIONS).any(|_| ask(test_unit_ready) == Some(Reply::good()));
            assert!(ready, "unit {at} does not get ready: {:?}", ask(test_unit_ready));
            let mut capacity = [0; 16];
            (capacity[0], capacity[1], capacity[13]) = (0x9e, 0x10, 32);
            let reply = ask(capacity);
            let last = reply.map(|reply| be64(&reply.data, 0));
            assert_eq!(last, Some(unit.blocks() - 1), "unit {at} has lost its size");
            unit.detach(&late);
        }
    }
}

fn attach(unit: &LogicalUnit, port: Port) -> Arc<Nexus> {
    let nexus = Arc::new(Nexus::new(port));
    unit.attach(&nexus);
    nexus
}

/// The data of a command: unchanged, cut to the requested length, or repeated up to it.
fn fitted(data: &[u8], want: usize, fit: bool) -> Vec<u8> {
    if fit && !data.is_empty() {
        let mut all = data.repeat(want.div_ceil(data.len()));
        all.truncate(want);
        all
    } else {
        data[..data.len().min(want)].to_vec()
    }
}

/// The blocks that a CDB names, read by the standard's tables and not by the code under test.
fn named(cdb: &[u8; 16]) -> Option<(u64, u64)> {
    let extent = match cdb[0] {
        0x08 | 0x0a => {
            (u64::from(be24(cdb, 1) & 0x1f_ffff), [256, u64::from(cdb[4])][usize::from(cdb[4] > 0)])
        }
        0x89 => (be64(cdb, 2), u64::from(cdb[13])),
        op => match op >> 5 {
            1 | 2 => (u64::from(be32(cdb, 2)), u64::from(be16(cdb, 7))),
            4 => (be64(cdb, 2), u64::from(be32(cdb, 10))),
            5 => (u64::from(be32(cdb, 2)), u64::from(be32(cdb, 6))),
            _ => return None,
        },
    };
    // What reaches the disk is inside it, so a range beyond 64 bits is never compared with one.
    extent.0.checked_add(extent.1).map(|_| extent)
}

fn same_extent(unit: &LogicalUnit, named: Option<(u64, u64)>, offset: u64, len: u64) {
    let shift = unit.shift();
    assert_eq!(Some((offset >> shift, len >> shift)), named, "other blocks than the CDB's");
    let whole = |n: u64| n.is_multiple_of(1 << shift);
    assert!(whole(offset) && whole(len), "{offset}+{len} is not whole blocks");
    assert!((offset + len) >> shift <= unit.blocks(), "{offset}+{len} is outside of the unit");
}

/// Properties of every reply.
fn sound(reply: &Reply, cdb: &[u8; 16]) {
    let Reply { status, sense, data } = reply;
    assert!(
        data.len() <= allocation(cdb),
        "{} bytes, {} allocated by {cdb:02x?}",
        data.len(),
        allocation(cdb)
    );
    assert_eq!(
        sense.is_some(),
        *status == status::CHECK_CONDITION,
        "sense without a reason, or none with one"
    );
    assert!(*status == status::GOOD || data.is_empty(), "data with a failure");
    if let Some(sense) = sense {
        let (fixed, descriptor) = (sense.encode(false), sense.encode(true));
        assert_eq!((fixed[0] & 0x7f, usize::from(fixed[7]) + 8), (0x70, fixed.len()));
        assert_eq!((descriptor[0], usize::from(descriptor[7]) + 8), (0x72, descriptor.len()));
        assert_eq!((fixed[2], fixed[12], fixed[13]), (descriptor[1], descriptor[2], descriptor[3]));
    }
}

/// The allocation length of the commands that return parameter data; no other command returns any.
fn allocation(cdb: &[u8; 16]) -> usize {
    match cdb[0] {
        0x03 | 0x1a => usize::from(cdb[4]),
        0x12 => usize::from(be16(cdb, 3)),
        0x37 | 0x5a | 0x5e => usize::from(be16(cdb, 7)),
        0x25 => 8,
        0xa0 | 0xa3 | 0xb7 => be32(cdb, 6) as usize,
        0x84 | 0x9e => be32(cdb, 10) as usize,
        _ => 0,
    }
}
