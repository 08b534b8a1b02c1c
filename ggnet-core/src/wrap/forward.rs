//! [`Wrapped`] is every port: one table a port, from which the forwarding is made.
//!
//! A table's `straight` methods go to the wrapped port as they are. Its `calls` go through the layer: `again` ones may be repeated
//! after an unknown outcome, `once` ones may not. Arguments are cloned for each try.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{Layer, Op, Wrapped};
use crate::{
    block::Disk,
    error::Result,
    nouns::{
        AuditRow, Event, Image, ImageId, ImageVersion, ImageVersionId, MacAddr, Machine, MachineId,
        ManualTarget, Name, ResourceId, SeenMachine, Session, SessionId, TargetId, Timestamp,
    },
    ports::{
        BaseImage, Batch, BootBundle, BootFileStore, BootPath, Connection, ConvertSpec, Converted,
        DhcpBackend, DhcpCapabilities, DhcpHost, Health, ImageConverter, ImageProbe, Listed, LoginGate,
        MachineFilter, Observer, Page, PageRequest, Progress, Removal, SessionCounts, SessionFilter, Store,
        TargetBackend, TargetCapabilities, TargetEndpoint, TargetSpec, WritebackCapabilities,
        WritebackListed, WritebackSpec, WritebackStore,
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

macro_rules! forward {
    ($port:ident as $label:literal {
        straight { $(fn $sm:ident($($sa:ident: $st:ty),*) $(-> $sr:ty)?;)* }
        calls { $($kind:ident $m:ident($($a:ident: $t:ty),*) -> $r:ty;)* }
        $(ends by $end:ident;)?
    }) => {
        #[async_trait]
        impl<P: $port + ?Sized, L: Layer> $port for Wrapped<P, L> {
            fn name(&self) -> &'static str {
                self.inner.name()
            }

            $(fn $sm(&self, $($sa: $st),*) $(-> $sr)? {
                self.inner.$sm($($sa),*)
            })*

            $(async fn $m(&self, $($a: $t),*) -> Result<$r> {
                let backend = self.inner.name();
                let op = Op { port: $label, backend, name: stringify!($m), repeatable: repeatable!($kind) };
                // `Clone::clone(&x)` of a reference is the reference, of a value a copy for this try.
                self.layer.around(op, move || self.inner.$m($(Clone::clone(&$a)),*)).await
            })*

            async fn health(&self) -> Health {
                let op = Op { port: $label, backend: self.inner.name(), name: "health", repeatable: true };
                let call = || -> super::Call<'_, Health> { Box::pin(async { Ok(self.inner.health().await) }) };
                self.layer.around(op, call).await.unwrap_or_else(|e| Health::Down(e.to_string()))
            }

            $(async fn $end(&self) {
                let op = Op { port: $label, backend: self.inner.name(), name: stringify!($end), repeatable: true };
                let call = || -> super::Call<'_, ()> {
                    Box::pin(async {
                        self.inner.$end().await;
                        Ok(())
                    })
                };
                if let Err(e) = self.layer.around(op, call).await {
                    tracing::warn!(port = $label, backend = op.backend, error = %e, "the end was not clean");
                }
            })?
        }
    };
}

forward!(TargetBackend as "target" {
    straight {
        fn capabilities() -> TargetCapabilities;
        fn attach(gate: Arc<dyn LoginGate>, observer: Arc<dyn Observer>);
    }
    calls {
        again ensure(spec: &TargetSpec) -> TargetEndpoint;
        again remove(id: &ResourceId, how: Removal) -> ();
        again list() -> Vec<Listed>;
        again connections() -> Vec<Connection>;
    }
    ends by shutdown;
});

forward!(WritebackStore as "writeback" {
    straight {
        fn capabilities() -> WritebackCapabilities;
    }
    calls {
        again ensure(spec: &WritebackSpec) -> Disk;
        again remove(id: &ResourceId, how: Removal) -> ();
        again open_base(base: &BaseImage) -> Disk;
        again list() -> Vec<WritebackListed>;
    }
    ends by shutdown;
});

forward!(DhcpBackend as "dhcp" {
    straight {
        fn capabilities() -> DhcpCapabilities;
        fn attach(observer: Arc<dyn Observer>);
    }
    calls {
        again ensure(host: &DhcpHost) -> ();
        again remove(id: &ResourceId, how: Removal) -> ();
        again list() -> Vec<Listed>;
    }
    ends by shutdown;
});

forward!(BootFileStore as "boot_file" {
    straight {
        fn attach(observer: Arc<dyn Observer>);
    }
    calls {
        again ensure(bundle: &BootBundle) -> ();
        again remove(id: &ResourceId, how: Removal) -> ();
        again list() -> Vec<Listed>;
        again read(path: &BootPath) -> Bytes;
    }
    ends by shutdown;
});

forward!(ImageConverter as "image_converter" {
    straight {}
    calls {
        again probe(path: &Path) -> ImageProbe;
        once convert(spec: &ConvertSpec, progress: Progress, cancel: CancellationToken) -> Converted;
        again clean(destination_dir: &Path) -> ();
    }
});

forward!(Store as "store" {
    straight {}
    calls {
        once commit(batch: Batch) -> Vec<Event>;
        again machine(id: MachineId) -> Option<Machine>;
        again machine_by_mac(mac: MacAddr) -> Option<Machine>;
        again machine_by_name(name: &Name) -> Option<Machine>;
        again machines(filter: &MachineFilter, page: PageRequest) -> Page<Machine>;
        again image(id: ImageId) -> Option<Image>;
        again image_by_name(name: &Name) -> Option<Image>;
        again images(page: PageRequest) -> Page<Image>;
        again version(id: ImageVersionId) -> Option<ImageVersion>;
        again versions(image: ImageId) -> Vec<ImageVersion>;
        again importing_versions() -> Vec<ImageVersion>;
        again session(id: SessionId) -> Option<Session>;
        again live_session(machine: MachineId) -> Option<Session>;
        again last_session(machine: MachineId) -> Option<Session>;
        again live_sessions() -> Vec<Session>;
        again sessions(filter: &SessionFilter, page: PageRequest) -> Page<Session>;
        again session_counts() -> SessionCounts;
        again target(id: TargetId) -> Option<ManualTarget>;
        again targets() -> Vec<ManualTarget>;
        again seen_machine(mac: MacAddr) -> Option<SeenMachine>;
        again seen(page: PageRequest) -> Page<SeenMachine>;
        again events(cursor: i64, limit: u32, machine: Option<MachineId>) -> Vec<Event>;
        again audit(page: PageRequest) -> Page<AuditRow>;
        again setting(key: &str) -> Option<String>;
        again prune(before: Timestamp) -> u64;
    }
    ends by shutdown;
});
