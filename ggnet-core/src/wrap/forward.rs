//! [`Wrapped`] is every port: one table a port, from which the forwarding is made.
//!
//! A table's `straight` methods go to the wrapped port as they are. Its `calls` go through the layer: `again` ones may be repeated
//! after an unknown outcome, `once` ones may not; then come the [`Class`], the arguments (references first, values after the `;`) and which
//! objects the call changes. Arguments are owned by the call, which may outlive its caller, and cloned for each try.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{Call, Class, Layer, Op, Wrapped, pulse::Pulse};
use crate::{
    block::{Disk, DiskForm},
    error::Result,
    nouns::{
        AuditRow, Cursor, Event, Image, ImageId, ImageVersion, ImageVersionId, Job, JobId, MacAddr, Machine,
        MachineId, ManualTarget, Name, ResourceId, SeenMachine, Session, SessionId, TargetId, Timestamp,
    },
    ports::{
        Batch, BootBundle, BootFileStore, BootPath, Connection, ConvertSpec, Converted, DhcpBackend,
        DhcpCapabilities, DhcpChange, DhcpRefusal, Frozen, Health, ImageCapabilities, ImageConverter,
        ImageListed, ImageProbe, ImageSpec, ImageStore, JobFilter, Listed, LoginGate, LunDisks,
        MachineFilter, Names, Observer, OpenImage, Page, PageRequest, Progress, Removal, SessionCounts,
        SessionFilter, Sink, SinkForm, Store, TargetBackend, TargetCapabilities, TargetEndpoint, TargetSpec,
        WritebackCapabilities, WritebackListed, WritebackSpec, WritebackStore,
    },
};

macro_rules! repeatable {
    (again) => {
        true
    };
    (once) => {
        false
    };
}

macro_rules! objects {
    () => {
        Vec::new()
    };
    ($objects:expr) => {
        sorted($objects)
    };
}

/// In one order, whoever asks: so that two calls which change some of the same objects never wait for each other.
fn sorted<'a, T: ToString + 'a>(ids: impl IntoIterator<Item = &'a T>) -> Vec<String> {
    ids.into_iter().map(ToString::to_string).collect::<BTreeSet<_>>().into_iter().collect()
}

/// What a conversion writes to, by a name: two to one sink run one after the other.
fn sink_name(sink: &Sink) -> String {
    match sink {
        Sink::File(path) => path.display().to_string(),
        Sink::Blocks(device) => format!("the blocks at {:p}", Arc::as_ptr(device).cast::<()>()),
    }
}

/// A call with its arguments, owned: it may outlive its caller.
macro_rules! call {
    ($self:ident.$m:ident($(&$ra:ident),*; $($a:ident),*)) => {{
        let inner = Arc::clone(&$self.inner);
        $(let $ra = ToOwned::to_owned($ra);)*
        move || -> Call<_> {
            let inner = Arc::clone(&inner);
            // A copy for each try.
            $(let $ra = Clone::clone(&$ra);)*
            $(let $a = Clone::clone(&$a);)*
            Box::pin(async move { inner.$m($(&$ra,)* $($a),*).await })
        }
    }};
}

macro_rules! forward {
    ($port:ident as $label:literal {
        straight { $(fn $sm:ident($($sa:ident: $st:ty),*) $(-> $sr:ty)?;)* }
        calls { $($kind:ident $class:ident $m:ident($(&$ra:ident: $rt:ty),*; $($a:ident: $t:ty),*) -> $r:ty $(, of $objects:expr)?;)* }
        $(ends by $end:ident;)?
        $(beside { $($beside:tt)* })?
    }) => {
        #[async_trait]
        impl<P: $port + ?Sized, L: Layer> $port for Wrapped<P, L> {
            fn name(&self) -> &'static str {
                self.inner.name()
            }

            $(fn $sm(&self, $($sa: $st),*) $(-> $sr)? {
                self.inner.$sm($($sa),*)
            })*

            $(async fn $m(&self, $($ra: &$rt,)* $($a: $t),*) -> Result<$r> {
                let op = Op {
                    port: $label,
                    backend: self.inner.name(),
                    name: stringify!($m),
                    class: Class::$class,
                    repeatable: repeatable!($kind),
                    objects: objects!($($objects)?),
                    pulse: None,
                };
                self.layer.around(op, call!(self.$m($(&$ra),*; $($a),*))).await
            })*

            async fn health(&self) -> Health {
                let op = Op {
                    port: $label,
                    backend: self.inner.name(),
                    name: "health",
                    class: Class::Health,
                    repeatable: true,
                    // One at a time: when it hangs, only one thread hangs.
                    objects: vec!["health".to_owned()],
                    pulse: None,
                };
                let inner = Arc::clone(&self.inner);
                let call = move || -> Call<Health> {
                    let inner = Arc::clone(&inner);
                    Box::pin(async move { Ok(inner.health().await) })
                };
                let told = self.layer.around(op, call).await;
                self.layer.health(told.unwrap_or_else(|e| Health::Down(e.explain())))
            }

            $(async fn $end(&self) {
                let op = Op {
                    port: $label,
                    backend: self.inner.name(),
                    name: stringify!($end),
                    class: Class::Shutdown,
                    repeatable: true,
                    objects: Vec::new(),
                    pulse: None,
                };
                let inner = Arc::clone(&self.inner);
                let call = move || -> Call<()> {
                    let inner = Arc::clone(&inner);
                    Box::pin(async move {
                        inner.$end().await;
                        Ok(())
                    })
                };
                if let Err(e) = self.layer.around(op, call).await {
                    tracing::warn!(port = $label, backend = self.inner.name(), error = %e, "the end was not clean");
                }
            })?

            $($($beside)*)?
        }
    };
}

forward!(TargetBackend as "target" {
    straight {
        fn capabilities() -> TargetCapabilities;
        fn attach(gate: Arc<dyn LoginGate>, observer: Arc<dyn Observer>);
    }
    calls {
        again Change ensure(&spec: TargetSpec, &disks: LunDisks;) -> TargetEndpoint, of [&spec.id];
        again Change remove(&id: ResourceId; how: Removal) -> (), of [id];
        again Read endpoint(&id: ResourceId;) -> Option<TargetEndpoint>;
        again Read get(&id: ResourceId;) -> Option<Listed>;
        again Read list(;) -> Vec<Listed>;
        again Read connections(;) -> Vec<Connection>;
    }
    ends by shutdown;
});

forward!(WritebackStore as "writeback" {
    straight {
        fn capabilities() -> WritebackCapabilities;
    }
    calls {
        again Change ensure(&spec: WritebackSpec, &base: OpenImage;) -> Disk, of [&spec.id];
        again Change freeze(&id: ResourceId;) -> Frozen, of [id];
        again Change remove(&id: ResourceId; how: Removal) -> (), of [id];
        again Read list(;) -> Vec<WritebackListed>;
        again Read get(&id: ResourceId;) -> Option<WritebackListed>;
    }
    ends by shutdown;
});

forward!(ImageStore as "image" {
    straight {
        fn capabilities() -> ImageCapabilities;
    }
    calls {
        again Change draft(&spec: ImageSpec;) -> Sink, of [&spec.id];
        again Change seal(&spec: ImageSpec;) -> ImageListed, of [&spec.id];
        again Change adopt(&spec: ImageSpec, &from: Frozen;) -> ImageListed, of [&spec.id];
        again Change remove(; id: ImageVersionId, how: Removal) -> (), of [&id];
        again Read open(; id: ImageVersionId, form: DiskForm) -> OpenImage;
        again Read get(; id: ImageVersionId) -> Option<ImageListed>;
        again Read list(;) -> Vec<ImageListed>;
    }
    ends by shutdown;
});

forward!(DhcpBackend as "dhcp" {
    straight {
        fn capabilities() -> DhcpCapabilities;
        fn attach(observer: Arc<dyn Observer>);
    }
    calls {
        again Change apply(&changes: [DhcpChange];) -> Vec<DhcpRefusal>, of changes.iter().map(DhcpChange::id);
        again Read get(&id: ResourceId;) -> Option<Listed>;
        again Read list(;) -> Vec<Listed>;
    }
    ends by shutdown;
});

forward!(BootFileStore as "boot_file" {
    straight {
        fn attach(observer: Arc<dyn Observer>);
    }
    calls {
        again Change ensure(&bundle: BootBundle;) -> (), of [&bundle.id];
        again Change remove(&id: ResourceId;) -> (), of [id];
        again Read get(&id: ResourceId;) -> Option<Listed>;
        again Read list(;) -> Vec<Listed>;
        again Read read(&path: BootPath;) -> Bytes;
    }
    ends by shutdown;
});

forward!(ImageConverter as "image_converter" {
    straight {
        fn sinks() -> Vec<SinkForm>;
    }
    calls {
        again Read probe(&path: Path;) -> ImageProbe;
    }
    beside {
        async fn convert(
            &self,
            spec: &ConvertSpec,
            progress: Progress,
            cancel: CancellationToken,
        ) -> Result<Converted> {
            let pulse = Pulse::new(cancel);
            // A caller that goes away wants no conversion.
            let _gone = pulse.token().drop_guard();
            let op = Op {
                port: "image_converter",
                backend: self.inner.name(),
                name: "convert",
                class: Class::Convert,
                repeatable: false,
                objects: vec![sink_name(&spec.sink)],
                pulse: Some(Arc::clone(&pulse)),
            };
            let (inner, spec, progress) = (Arc::clone(&self.inner), spec.clone(), pulse.watch(progress));
            let call = move || -> Call<Converted> {
                let (inner, spec, progress) = (Arc::clone(&inner), spec.clone(), Arc::clone(&progress));
                let pulse = Arc::clone(&pulse);
                Box::pin(async move {
                    let converted = inner.convert(&spec, progress, pulse.token()).await;
                    // Given up before: what is in the sink means nothing, and the next start's sweep removes what is left of the draft.
                    pulse.end();
                    converted
                })
            };
            self.layer.around(op, call).await
        }
    }
});

forward!(Store as "store" {
    straight {
        fn synced_commits() -> Option<u64>;
    }
    calls {
        once Commit commit(; batch: Batch) -> Vec<Event>;
        again Read machine(; id: MachineId) -> Option<Machine>;
        again Read machine_by_mac(; mac: MacAddr) -> Option<Machine>;
        again Read machine_by_name(&name: Name;) -> Option<Machine>;
        again Read machines(&filter: MachineFilter; page: PageRequest) -> Page<Machine>;
        again Read image(; id: ImageId) -> Option<Image>;
        again Read image_by_name(&name: Name;) -> Option<Image>;
        again Read images(; page: PageRequest) -> Page<Image>;
        again Read version(; id: ImageVersionId) -> Option<ImageVersion>;
        again Read versions(; image: ImageId) -> Vec<ImageVersion>;
        again Read versions_of(&images: [ImageId];) -> Vec<ImageVersion>;
        again Read importing_versions(;) -> Vec<ImageVersion>;
        again Read session(; id: SessionId) -> Option<Session>;
        again Read live_session(; machine: MachineId) -> Option<Session>;
        again Read last_session(; machine: MachineId) -> Option<Session>;
        again Read live_sessions(;) -> Vec<Session>;
        again Read sessions(&filter: SessionFilter; page: PageRequest) -> Page<Session>;
        again Read session_counts(;) -> SessionCounts;
        again Read names(&machines: [MachineId], &images: [ImageId];) -> Names;
        again Read job(; id: JobId) -> Option<Job>;
        again Read live_jobs(;) -> Vec<Job>;
        again Read jobs(&filter: JobFilter; page: PageRequest) -> Page<Job>;
        again Read target(; id: TargetId) -> Option<ManualTarget>;
        again Read targets(;) -> Vec<ManualTarget>;
        again Read seen_machine(; mac: MacAddr) -> Option<SeenMachine>;
        again Read seen(; page: PageRequest) -> Page<SeenMachine>;
        again Read events(; after: Option<Cursor>, limit: u32, machine: Option<MachineId>) -> Vec<Event>;
        again Read newest_events(; limit: u32, machine: Option<MachineId>) -> Vec<Event>;
        again Read audit(; page: PageRequest) -> Page<AuditRow>;
        again Read setting(&key: str;) -> Option<String>;
        again Change prune(; before: Timestamp) -> u64;
    }
    ends by shutdown;
});
