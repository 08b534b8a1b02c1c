//! The configuration: TOML, overridden by environment variables and options.
//!
//! The server works without a configuration: HTTP and iSCSI on loopback, a store in a local data folder, and no network until an interface
//! is named. Unknown keys are refused with file, line and column. Each port has a section with the name of its `backend`; the other keys
//! of the section belong to that backend.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ggnet_core::{
    Error, ErrorKind, Result,
    nouns::Iqn,
    orchestrator::{ChapPolicy, OrchestratorConfig},
    registry::{PortName, Settings},
    wrap::{self, PortLimits},
};
use serde::{Deserialize, Deserializer};

/// Everything that can be configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The data folder; locked by one server at a time.
    pub data_dir: PathBuf,
    /// The HTTP server.
    pub http: Http,
    /// The network that machines boot on.
    pub network: Network,
    /// Sessions.
    pub session: Session,
    /// Images.
    pub images: Images,
    /// Jobs.
    pub jobs: Jobs,
    /// The limits of calls to the backends.
    pub limits: Limits,
    /// The log.
    pub log: Log,
    /// The store: persistence.
    #[serde(deserialize_with = "store")]
    pub store: Backend,
    /// iSCSI targets.
    #[serde(deserialize_with = "target")]
    pub target: Backend,
    /// The writeback store: writable disks.
    #[serde(deserialize_with = "writeback")]
    pub writeback: Backend,
    /// DHCP.
    #[serde(deserialize_with = "dhcp")]
    pub dhcp: Backend,
    /// Boot files.
    #[serde(deserialize_with = "boot_files")]
    pub boot_files: Backend,
    /// Image conversion.
    #[serde(deserialize_with = "converter")]
    pub converter: Backend,
    /// A folder with boot script templates that replace the built-in ones.
    pub templates_dir: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("ggnet-data"),
            http: Http::default(),
            network: Network::default(),
            session: Session::default(),
            images: Images::default(),
            jobs: Jobs::default(),
            limits: Limits::default(),
            log: Log::default(),
            store: Backend::usual(PortName::Store),
            target: Backend::usual(PortName::Target),
            writeback: Backend::usual(PortName::Writeback),
            dhcp: Backend::usual(PortName::Dhcp),
            boot_files: Backend::usual(PortName::BootFiles),
            converter: Backend::usual(PortName::Converter),
            templates_dir: None,
        }
    }
}

/// The HTTP server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// The address and port to listen on.
    #[serde(deserialize_with = "crate::listen::deserialize")]
    pub listen: SocketAddr,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8080)) }
    }
}

/// The network that machines boot on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// The interfaces on which DHCP and TFTP are served; none: neither is served.
    pub interfaces: Vec<String>,
    /// The server address to send to machines; none: the local address of each connection.
    pub advertise: Option<IpAddr>,
}

/// Sessions.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Session {
    /// Whether logins of machines require CHAP; a change applies from a session's next generation on.
    pub chap: ChapPolicy,
    /// A `discard` session that is offline for longer is stopped.
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Duration,
    /// A generation that was prepared for a boot and is not used in this time is removed.
    #[serde(deserialize_with = "duration")]
    pub generation_ttl: Duration,
    /// A start that takes longer is undone.
    #[serde(deserialize_with = "duration")]
    pub start_deadline: Duration,
    /// How long a stop waits for running orchestrations before it aborts them; the next start completes them.
    #[serde(deserialize_with = "duration")]
    pub shutdown_deadline: Duration,
    /// The interval of the reconciler.
    #[serde(deserialize_with = "duration")]
    pub reconcile_interval: Duration,
    /// Events, audit rows and ended sessions that are older are deleted.
    #[serde(deserialize_with = "duration")]
    pub retention: Duration,
    /// How long a UEFI machine may take from its loader to its script.
    #[serde(deserialize_with = "duration")]
    pub script_deadline: Duration,
    /// The prefix of every IQN.
    pub iqn_prefix: Option<Iqn>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            chap: ChapPolicy::Required,
            idle_timeout: Duration::from_secs(600),
            generation_ttl: Duration::from_secs(600),
            start_deadline: Duration::from_secs(60),
            shutdown_deadline: Duration::from_secs(15),
            reconcile_interval: Duration::from_secs(15),
            retention: Duration::from_secs(90 * 24 * 3600),
            script_deadline: Duration::from_secs(30),
            iqn_prefix: None,
        }
    }
}

/// Images: the folders to import from, and the image store. The other keys of the section belong to that backend.
#[derive(Clone, Debug)]
pub struct Images {
    /// The folders from which files may be imported; none: `import` in the data folder.
    pub import_dirs: Vec<PathBuf>,
    /// The image store: the bytes of image versions.
    pub store: Backend,
}

impl Default for Images {
    fn default() -> Self {
        Self { import_dirs: Vec::new(), store: Backend::usual(PortName::Images) }
    }
}

impl<'de> Deserialize<'de> for Images {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(default)]
            import_dirs: Vec<PathBuf>,
            backend: Option<String>,
            #[serde(flatten)]
            settings: BTreeMap<String, serde_json::Value>,
        }
        let Raw { import_dirs, backend, settings } = Raw::deserialize(d)?;
        let backend = backend.unwrap_or_else(|| usual(PortName::Images).to_owned());
        Ok(Self { import_dirs, store: Backend { backend, settings: settings.into_iter().collect() } })
    }
}

/// Jobs, such as imports.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jobs {
    /// How many jobs run at once; the others are queued.
    pub at_once: usize,
}

impl Default for Jobs {
    fn default() -> Self {
        Self { at_once: 4 }
    }
}

/// The limits of calls to the backends, by port. The defaults are those of [`PortLimits`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Of the store.
    pub store: Limit,
    /// Of the targets.
    pub target: Limit,
    /// Of the image store.
    pub images: Limit,
    /// Of the writeback store.
    pub writeback: Limit,
    /// Of DHCP.
    pub dhcp: Limit,
    /// Of the boot files.
    pub boot_files: Limit,
    /// Of the converter.
    pub converter: Limit,
}

/// The limits of one port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limit {
    /// How long a call that changes nothing may take.
    #[serde(deserialize_with = "some_duration")]
    pub read: Option<Duration>,
    /// How long a call that changes something may take.
    #[serde(deserialize_with = "some_duration")]
    pub change: Option<Duration>,
    /// How long a conversion may go on without progress.
    #[serde(deserialize_with = "some_duration")]
    pub stall: Option<Duration>,
    /// How long the backend may take to report its health.
    #[serde(deserialize_with = "some_duration")]
    pub health: Option<Duration>,
    /// How long the backend may take to close.
    #[serde(deserialize_with = "some_duration")]
    pub shutdown: Option<Duration>,
    /// How many calls run at once.
    pub in_flight: Option<usize>,
    /// How many times a call is tried if the backend is not available.
    pub tries: Option<u32>,
}

impl Limit {
    fn over(&self, usual: &mut wrap::Limits) {
        usual.read = self.read.unwrap_or(usual.read);
        usual.change = self.change.unwrap_or(usual.change);
        usual.stall = self.stall.unwrap_or(usual.stall);
        usual.health = self.health.unwrap_or(usual.health);
        usual.shutdown = self.shutdown.unwrap_or(usual.shutdown);
        usual.in_flight = self.in_flight.unwrap_or(usual.in_flight);
        usual.tries = self.tries.unwrap_or(usual.tries);
    }
}

/// The log.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The format: for people or for programs.
    pub format: LogFormat,
    /// The level: `info`, or a filter such as `info,tftp=debug`.
    pub level: Option<String>,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// A port's section: the backend's name and its own settings.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The name of the backend.
    pub backend: String,
    /// The settings of the backend.
    pub settings: Settings,
}

impl Backend {
    /// The default backend of a port, with no settings.
    #[must_use]
    pub fn usual(port: PortName) -> Self {
        Self { backend: usual(port).to_owned(), settings: Settings::Object(serde_json::Map::new()) }
    }
}

/// The name of a port's default backend.
#[must_use]
pub const fn usual(port: PortName) -> &'static str {
    match port {
        PortName::Store => "sqlite",
        PortName::Target | PortName::BootFiles => "builtin",
        PortName::Images => "files",
        PortName::Writeback => "layers",
        PortName::Dhcp => "proxy",
        PortName::Converter => "qemu-img",
    }
}

/// Reads a port's section. If it names no backend, the default one is used.
fn section<'de, D: Deserializer<'de>>(port: PortName, d: D) -> std::result::Result<Backend, D::Error> {
    #[derive(Deserialize)]
    struct Raw {
        backend: Option<String>,
        #[serde(flatten)]
        settings: BTreeMap<String, serde_json::Value>,
    }
    let Raw { backend, settings } = Raw::deserialize(d)?;
    let backend = backend.unwrap_or_else(|| usual(port).to_owned());
    Ok(Backend { backend, settings: settings.into_iter().collect() })
}

macro_rules! sections {
    ($($name:ident = $port:ident),* $(,)?) => {$(
        fn $name<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Backend, D::Error> {
            section(PortName::$port, d)
        }
    )*};
}
sections!(
    store = Store,
    target = Target,
    writeback = Writeback,
    dhcp = Dhcp,
    boot_files = BootFiles,
    converter = Converter,
);

/// `"90s"`, `"10m"`, `"1h 30m"`, or a number of seconds.
fn duration<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Duration, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Seconds(u64),
        Words(String),
    }
    match Text::deserialize(d)? {
        Text::Seconds(s) => Ok(Duration::from_secs(s)),
        Text::Words(words) => words
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|d| Duration::try_from(d).ok())
            .ok_or_else(|| {
                serde::de::Error::custom(format!("{words:?} is not a duration such as \"90s\" or \"10m\""))
            }),
    }
}

fn some_duration<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Option<Duration>, D::Error> {
    duration(d).map(Some)
}

impl Config {
    /// A port's section.
    #[must_use]
    pub const fn section(&self, port: PortName) -> &Backend {
        match port {
            PortName::Store => &self.store,
            PortName::Target => &self.target,
            PortName::Images => &self.images.store,
            PortName::Writeback => &self.writeback,
            PortName::Dhcp => &self.dhcp,
            PortName::BootFiles => &self.boot_files,
            PortName::Converter => &self.converter,
        }
    }

    /// The prefix of every IQN.
    pub fn iqn_prefix(&self) -> Result<Iqn> {
        self.session.iqn_prefix.clone().map_or_else(OrchestratorConfig::default_iqn_prefix, Ok)
    }

    /// The limits of every port. A writeback change may take as long as a session's start, because it may copy a whole disk.
    pub fn port_limits(&self) -> Result<PortLimits> {
        let mut limits = PortLimits::default();
        limits.writeback.change = limits.writeback.change.max(self.session.start_deadline);
        let l = &self.limits;
        l.store.over(&mut limits.store);
        l.target.over(&mut limits.target);
        l.images.over(&mut limits.images);
        l.writeback.over(&mut limits.writeback);
        l.dhcp.over(&mut limits.dhcp);
        l.boot_files.over(&mut limits.boot_files);
        l.converter.over(&mut limits.converter);
        limits.check()?;
        Ok(limits)
    }

    /// Reads a file. Errors contain file, line, column and reason.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(format!("reading the configuration {}", path.display()), e))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses a text that came from `origin`.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| {
            let place = e.span().map(|span| {
                let before = &text[..span.start.min(text.len())];
                let line = before.matches('\n').count() + 1;
                let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
                format!("{origin}, line {line}, column {column}")
            });
            let place = place.unwrap_or_else(|| origin.to_owned());
            Error::new(ErrorKind::Invalid, format!("{place}: {}", e.message().trim()))
                .with_hint("docs/configuration.md lists every key")
        })
    }

    /// The folders from which files may be imported.
    #[must_use]
    pub fn import_dirs(&self) -> Vec<PathBuf> {
        if self.images.import_dirs.is_empty() {
            vec![self.data_dir.join("import")]
        } else {
            self.images.import_dirs.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_a_working_configuration_that_answers_on_no_network() {
        let c = Config::parse("", "x").unwrap();
        assert!(c.http.listen.ip().is_loopback());
        assert!(c.network.interfaces.is_empty());
        for port in PortName::ALL {
            assert_eq!(c.section(port).backend, usual(port));
        }
        let c =
            Config::parse("[dhcp]\nunknown = \"answer\"\n[boot_files]\nbackend = \"mine\"\n", "x").unwrap();
        assert_eq!((c.dhcp.backend.as_str(), c.boot_files.backend.as_str()), ("proxy", "mine"));
    }

    #[test]
    fn a_wrong_key_is_named_with_its_place() {
        let e =
            Config::parse("[http]\nlisten = \"127.0.0.1:1\"\nlisen = 2\n", "g.toml").unwrap_err().to_string();
        assert!(e.contains("g.toml, line 3, column 1") && e.contains("lisen"), "{e}");
        let e = Config::parse("[http]\nlisten = \"127.0.0.1\"\n", "g.toml").unwrap_err().to_string();
        assert!(e.contains("line 2, column 10") && e.contains("the port is missing"), "{e}");
        let local = Config::parse("[http]\nlisten = \"localhost:8081\"\n", "g.toml").unwrap();
        assert_eq!(local.http.listen.to_string(), "127.0.0.1:8081");
        let e = Config::parse("[session]\nidle_timeout = \"soon\"\n", "g.toml").unwrap_err().to_string();
        assert!(e.contains("soon") && e.contains("line 2"), "{e}");
    }

    #[test]
    fn the_section_of_images_has_the_servers_key_and_the_backends() {
        let c = Config::parse("[images]\nimport_dirs = [\"/srv\"]\nplace = \"/images\"\n", "x").unwrap();
        assert_eq!(c.import_dirs(), [PathBuf::from("/srv")]);
        let store = c.section(PortName::Images);
        assert_eq!(
            (store.backend.as_str(), &store.settings),
            ("files", &serde_json::json!({ "place": "/images" }))
        );
        let c = Config::parse("[images]\nbackend = \"mine\"\n", "x").unwrap();
        assert_eq!(c.section(PortName::Images).backend, "mine");
        assert_eq!(c.import_dirs(), [PathBuf::from("ggnet-data/import")]);
    }

    #[test]
    fn a_backends_own_settings_go_to_the_backend() {
        let c = Config::parse("[target]\nlisten = [\"127.0.0.1:0\"]\n", "x").unwrap();
        assert_eq!(c.target.settings["listen"][0], "127.0.0.1:0");
        let c = Config::parse("[session]\nidle_timeout = \"1h 30m\"\ngeneration_ttl = 5\n", "x").unwrap();
        assert_eq!((c.session.idle_timeout.as_secs(), c.session.generation_ttl.as_secs()), (5400, 5));
        let c = Config::parse("[session]\nshutdown_deadline = \"40s\"\n", "x").unwrap();
        assert_eq!(c.session.shutdown_deadline.as_secs(), 40);
    }

    #[test]
    fn four_jobs_run_at_once_unless_another_number_is_named() {
        let at_once = |text: &str| Config::parse(text, "x").unwrap().jobs.at_once;
        assert_eq!((at_once(""), at_once("[jobs]\nat_once = 1\n")), (4, 1));
    }

    #[test]
    fn chap_is_required_unless_it_is_off() {
        let chap = |text: &str| Config::parse(text, "x").map(|c| c.session.chap);
        assert_eq!(chap("").unwrap(), ChapPolicy::Required);
        assert_eq!(chap("[session]\nchap = \"required\"\n").unwrap(), ChapPolicy::Required);
        assert_eq!(chap("[session]\nchap = \"off\"\n").unwrap(), ChapPolicy::Off);
        let e = chap("[session]\nchap = \"no\"\n").unwrap_err().to_string();
        assert!(e.contains("line 2") && e.contains("`required`"), "{e}");
    }

    #[test]
    fn limits_have_defaults_and_a_wrong_one_is_named() {
        let limits = |text: &str| Config::parse(text, "x").unwrap().port_limits();
        assert_eq!(limits("").unwrap(), PortLimits::default());
        let some = limits("[limits.dhcp]\nchange = \"3m\"\nin_flight = 7\n").unwrap();
        assert_eq!((some.dhcp.change.as_secs(), some.dhcp.in_flight), (180, 7));
        assert_eq!(some.dhcp.read, PortLimits::default().dhcp.read);
        let slow = limits("[session]\nstart_deadline = \"1h\"\n").unwrap();
        assert_eq!(slow.writeback.change.as_secs(), 3600, "as long as a start may take");
        let e = limits("[limits.store]\nin_flight = 0\n").unwrap_err().to_string();
        assert!(e.contains("limits.store.in_flight"), "{e}");
        assert!(Config::parse("[limits.stor]\nread = 1\n", "x").is_err());
    }
}
