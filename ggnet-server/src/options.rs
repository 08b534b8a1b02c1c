//! The command line, and what it and the environment set over the configuration file.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand};
use ggnet_core::Result;
use serde_json::json;

use crate::{
    config::{Config, LogFormat},
    listen,
};

/// Read when no `--config` is given and it exists.
const DEFAULT_CONFIG: &str = "/etc/ggnet/ggnet-server.toml";

/// GGnet: one disk image boots a whole room of machines that have no disk.
///
/// Without any configuration it serves HTTP on 127.0.0.1:8080 and iSCSI on 127.0.0.1:3260, keeps everything in ./ggnet-data, and answers
/// DHCP and TFTP on no network. `--interface eth0` switches those on and serves that network.
#[derive(Debug, Parser)]
#[command(name = "ggnet-server", version, max_term_width = 100)]
pub struct Options {
    /// The configuration file.
    #[arg(long, short, env = "GGNET_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Where everything is kept.
    #[arg(long, env = "GGNET_DATA_DIR", value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Where HTTP listens.
    #[arg(long, env = "GGNET_HTTP_LISTEN", value_name = "ADDR:PORT", value_parser = listen::address, global = true)]
    pub http_listen: Option<SocketAddr>,
    /// Where iSCSI listens; left out: on the address of HTTP, port 3260.
    #[arg(long, env = "GGNET_ISCSI_LISTEN", value_name = "ADDR:PORT", value_delimiter = ',', value_parser = listen::address, global = true)]
    pub iscsi_listen: Vec<SocketAddr>,
    /// An interface on which DHCP and TFTP answer. Unless told otherwise HTTP and iSCSI then listen on every address.
    #[arg(long, env = "GGNET_INTERFACES", value_name = "IF", value_delimiter = ',', global = true)]
    pub interface: Vec<String>,
    /// The address that machines are told; left out: the one through which they reach us.
    #[arg(long, env = "GGNET_ADVERTISE", value_name = "IP", global = true)]
    pub advertise: Option<IpAddr>,
    /// A folder below which images may be imported.
    #[arg(long, env = "GGNET_IMPORT_DIRS", value_name = "DIR", value_delimiter = ':', global = true)]
    pub import_dir: Vec<PathBuf>,
    /// The form of log lines.
    #[arg(long, env = "GGNET_LOG_FORMAT", value_name = "FORMAT", global = true)]
    pub log_format: Option<LogFormat>,
    /// Which log lines: `info`, or a filter such as `info,tftp=debug`.
    #[arg(long, env = "GGNET_LOG", value_name = "FILTER", global = true)]
    pub log: Option<String>,
    /// What to do; left out: serve.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM or Ctrl-C.
    Serve,
    /// Say what is missing on this host and how to mend it. Exit code 3 when something keeps machines from booting.
    Check {
        /// Also send a PXE request on this interface and name every server that answers.
        #[arg(long, value_name = "IF")]
        lan: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// The backends that this server has, and the keys of their sections in the configuration.
    Backends {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// As root: do for a server that is not root what needs root, and nothing else.
    Helper(HelperOptions),
    /// The administrator token.
    Token {
        /// What to do with it.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// The key file, which opens the credentials of sessions in the database.
    Key {
        /// What to do with it.
        #[command(subcommand)]
        command: KeyCommand,
    },
}

/// What the helper does, beside what the configuration says of the target.
#[derive(Debug, Args)]
pub struct HelperOptions {
    /// The user that the server runs as. It and root are answered, and its rights open disks.
    #[arg(long, default_value = "ggnet", value_name = "USER")]
    pub user: String,
    /// A unit that may be asked for, started and restarted.
    #[arg(long = "unit", value_name = "UNIT")]
    pub units: Vec<String>,
    /// Another folder below which disks may stand.
    #[arg(long = "disks", value_name = "DIR")]
    pub disks: Vec<PathBuf>,
    /// Where to listen; left out: the socket that systemd hands over.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// What to do with the token.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a new token, shown once; the old one is worth nothing from then on. The server must be stopped.
    Reset,
}

/// What to do with the key.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// When the key file is lost or another: make a new one, keep the old one beside it, and end the sessions that need it. Their machines
    /// must boot anew. Refused while it opens any of them. The server must be stopped.
    Reset,
}

impl Options {
    /// The configuration file with the environment and the flags over it.
    pub fn configuration(&self) -> Result<Config> {
        let default = PathBuf::from(DEFAULT_CONFIG);
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None if default.exists() => Config::read(&default)?,
            None => Config::default(),
        };
        if !self.interface.is_empty() {
            config.network.interfaces.clone_from(&self.interface);
        }
        if let Some(dir) = &self.data_dir {
            config.data_dir.clone_from(dir);
        }
        if let Some(listen) = self.http_listen {
            config.http.listen = listen;
        } else if !config.network.interfaces.is_empty()
            && config.http.listen == crate::config::Http::default().listen
        {
            // A network was named: loopback would serve nobody. What the file says stays.
            config.http.listen = SocketAddr::from(([0, 0, 0, 0], 8080));
        }
        if !self.iscsi_listen.is_empty() {
            config.target.settings["listen"] = json!(self.iscsi_listen);
        }
        if self.advertise.is_some() {
            config.network.advertise = self.advertise;
        }
        if !self.import_dir.is_empty() {
            config.images.import_dirs.clone_from(&self.import_dir);
        }
        if let Some(format) = self.log_format {
            config.log.format = format;
        }
        if self.log.is_some() {
            config.log.level.clone_from(&self.log);
        }
        config.port_limits()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Options::command().debug_assert();
    }

    #[test]
    fn localhost_is_understood_and_another_name_is_told_what_to_write() {
        let listen = |at: &str| {
            let words =
                ["s", "--config", "/dev/null", "--http-listen", at, "--iscsi-listen", "localhost:1,[::1]:2"];
            Options::try_parse_from(words)
        };
        let c = listen("localhost:8081").unwrap().configuration().unwrap();
        assert_eq!(c.http.listen.to_string(), "127.0.0.1:8081");
        assert_eq!(c.target.settings["listen"], json!(["127.0.0.1:1", "[::1]:2"]));
        let said = listen("pc.example:8081").unwrap_err().to_string();
        assert!(said.contains("--http-listen") && said.contains("such as 127.0.0.1:8080"), "{said}");
    }

    #[test]
    fn a_named_interface_opens_the_listeners_and_flags_beat_that() {
        let c = Options::parse_from(["s", "--config", "/dev/null", "--interface", "eth7"])
            .configuration()
            .unwrap();
        assert!(c.http.listen.ip().is_unspecified());
        assert_eq!(c.target.settings["listen"], json!(null), "the target follows");
        let c = Options::parse_from([
            "s",
            "--config",
            "/dev/null",
            "--interface",
            "eth7",
            "--http-listen",
            "127.0.0.1:1",
        ]);
        assert!(c.configuration().unwrap().http.listen.ip().is_loopback());
    }
}
