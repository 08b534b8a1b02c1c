//! The command line. Options and environment variables override the configuration file.

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

const AFTER: &str = "\
Examples:
  ggnet-server --data-dir /tmp/try              try it on this machine, without a network
  sudo ggnet-server check --interface eth0      check this host before serving the network on eth0
  sudo ggnet-server --interface eth0            serve that network
  ggnet-server --config /etc/ggnet/ggnet-server.toml";

/// Read if it exists and no `--config` is given.
const DEFAULT_CONFIG: &str = "/etc/ggnet/ggnet-server.toml";

/// GGnet: boot a room of diskless machines from one disk image.
///
/// Without a configuration ggnet-server serves HTTP on 127.0.0.1:8080 and iSCSI on 127.0.0.1:3260, stores all data in ./ggnet-data, and
/// serves no DHCP and no TFTP. `--interface eth0` serves the network on eth0, with DHCP and TFTP.
#[derive(Debug, Parser)]
#[command(name = "ggnet-server", version, max_term_width = 100, after_help = AFTER)]
pub struct Options {
    /// The configuration file. Default: /etc/ggnet/ggnet-server.toml, if it exists.
    #[arg(long, short, env = "GGNET_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// The data folder: database, images, writebacks and keys. Default: ./ggnet-data.
    #[arg(long, env = "GGNET_DATA_DIR", value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// The address and port of HTTP, for example 0.0.0.0:8080.
    #[arg(long, env = "GGNET_HTTP_LISTEN", value_name = "ADDR:PORT", value_parser = listen::address, global = true)]
    pub http_listen: Option<SocketAddr>,
    /// The addresses and ports of iSCSI. Default: the address of HTTP, port 3260.
    #[arg(long, env = "GGNET_ISCSI_LISTEN", value_name = "ADDR:PORT", value_delimiter = ',', value_parser = listen::address, global = true)]
    pub iscsi_listen: Vec<SocketAddr>,
    /// A network interface on which to serve DHCP and TFTP. HTTP and iSCSI then listen on all addresses by default.
    #[arg(long, env = "GGNET_INTERFACES", value_name = "IF", value_delimiter = ',', global = true)]
    pub interface: Vec<String>,
    /// The server address to send to machines. Default: the address that the machine connected to.
    #[arg(long, env = "GGNET_ADVERTISE", value_name = "IP", global = true)]
    pub advertise: Option<IpAddr>,
    /// A folder from which images may be imported. Default: `import` in the data folder.
    #[arg(long, env = "GGNET_IMPORT_DIRS", value_name = "DIR", value_delimiter = ':', global = true)]
    pub import_dir: Vec<PathBuf>,
    /// The format of log lines.
    #[arg(long, env = "GGNET_LOG_FORMAT", value_name = "FORMAT", global = true)]
    pub log_format: Option<LogFormat>,
    /// The log level: `info`, or a filter such as `info,tftp=debug`.
    #[arg(long, env = "GGNET_LOG", value_name = "FILTER", global = true)]
    pub log: Option<String>,
    /// The command. Default: serve.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM or Ctrl-C.
    Serve,
    /// Check this host and print how to fix each problem. Exit code 3: a problem prevents machines from booting.
    #[command(
        after_help = "Examples:\n  sudo ggnet-server check --interface eth0\n  sudo ggnet-server check --interface eth0 --lan eth0"
    )]
    Check {
        /// Also send a PXE request on this interface and list all servers that respond.
        #[arg(long, value_name = "IF")]
        lan: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the available backends and the configuration keys of each.
    Backends {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run the helper: as root, do the few operations that an unprivileged server needs root for.
    #[command(after_help = "\
The helper reads the server's configuration. Normally systemd starts it (ggnet-helper.socket).

Example:
  ggnet-server helper --unit isc-dhcp-server.service --socket /run/ggnet/helper.sock")]
    Helper(HelperOptions),
    /// Manage the administrator token.
    Token {
        /// The command.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Manage the key file, which decrypts the credentials of sessions in the database.
    Key {
        /// The command.
        #[command(subcommand)]
        command: KeyCommand,
    },
}

/// What the helper may do, in addition to what the configuration says about the target.
#[derive(Debug, Args)]
pub struct HelperOptions {
    /// The user of the server. Only this user and root may call the helper; disks are opened with this user's rights.
    #[arg(long, default_value = "ggnet", value_name = "USER")]
    pub user: String,
    /// A systemd unit that the server may query, start and restart; may be repeated.
    #[arg(long = "unit", value_name = "UNIT")]
    pub units: Vec<String>,
    /// An additional folder for disks; may be repeated.
    #[arg(long = "disks", value_name = "DIR")]
    pub disks: Vec<PathBuf>,
    /// The socket to listen on. Default: the socket passed by systemd.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Commands on the token.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a new token and print it once; the old one becomes invalid. Stop the server first.
    Reset,
}

/// Commands on the key.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Create a new key file if the old one is lost or wrong. Keeps the old file under another name and ends the sessions that need the old
    /// key; their machines must reboot. Refused if the present key still opens any of them. Stop the server first.
    Reset,
}

impl Options {
    /// The configuration file, overridden by environment variables and options.
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
            // On loopback no machine of the named network could reach HTTP. An address set in the file stays.
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
    fn localhost_is_accepted_and_the_error_for_another_name_has_an_example() {
        let listen = |at: &str| {
            let words =
                ["s", "--config", "/dev/null", "--http-listen", at, "--iscsi-listen", "localhost:1,[::1]:2"];
            Options::try_parse_from(words)
        };
        let c = listen("localhost:8081").unwrap().configuration().unwrap();
        assert_eq!(c.http.listen.to_string(), "127.0.0.1:8081");
        assert_eq!(c.target.settings["listen"], json!(["127.0.0.1:1", "[::1]:2"]));
        let error = listen("pc.example:8081").unwrap_err().to_string();
        assert!(error.contains("--http-listen") && error.contains("such as 127.0.0.1:8080"), "{error}");
    }

    #[test]
    fn a_named_interface_opens_the_listeners_and_options_override_that() {
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
