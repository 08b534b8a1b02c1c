//! The target backend "builtin", with an initiator that uses iSCSI over TCP.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use ggnet_backends::target::builtin::{BuiltinTargetConfig, BuiltinTargets};
use ggnet_core::{
    block::{BlockDevice, Disk},
    error::Result,
    ports::{Access, SystemClock, TargetBackend, TargetEndpoint},
    testkit::{
        memory::RamDisk,
        suite::{Fixture, TargetClient, TargetFixture, instance, iqn_prefix},
    },
};

use crate::{iscsi_support::client, process::Process};

/// The disks, and the process that serves them.
#[derive(Default)]
struct Portal {
    disks: Mutex<HashMap<String, Arc<dyn BlockDevice>>>,
    process: Mutex<Option<Process>>,
}

#[async_trait]
impl Fixture<dyn TargetBackend> for Portal {
    async fn fresh(&self) -> Arc<dyn TargetBackend> {
        let process = Process::start();
        let config = BuiltinTargetConfig { listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))] };
        let targets = {
            let handle = process.handle();
            let _entered = handle.enter();
            BuiltinTargets::start(config, iqn_prefix(), instance(), Arc::new(SystemClock)).unwrap()
        };
        *self.process.lock().unwrap() = Some(process);
        Arc::new(targets)
    }

    async fn reopen(&self) -> Arc<dyn TargetBackend> {
        let old = self.process.lock().unwrap().take();
        old.expect("fresh() came before").kill().await;
        self.fresh().await
    }
}

#[async_trait]
impl TargetFixture for Portal {
    async fn disk(&self, key: &str, size: u64) -> Disk {
        let mut disks = self.disks.lock().unwrap();
        let new = || -> Arc<dyn BlockDevice> { Arc::new(RamDisk::zeros(usize::try_from(size).unwrap())) };
        Disk::Blocks(Arc::clone(disks.entry(key.to_owned()).or_insert_with(new)))
    }

    fn can_connect(&self) -> bool {
        true
    }

    async fn connect(&self, endpoint: &TargetEndpoint, access: &Access) -> Result<Box<dyn TargetClient>> {
        client::log_in(endpoint, access).await
    }
}

ggnet_core::target_behaviour!(behaviour, Portal::default(), not_run: [
    what_is_not_ours_is_left_alone,
    chap_it_cannot_demand_is_unsupported,
    mutual_chap_it_cannot_do_is_unsupported,
    too_many_luns_are_refused,
]);
