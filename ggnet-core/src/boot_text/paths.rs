//! The paths that machines request: the templates contain them and the server answers them. They are defined only here.

use crate::{error::Result, nouns::MacAddr, ports::boot_file::BootPath};

/// The HTTP path of a machine's script, below the server's base URL: `boot/<mac-with-dashes>.ipxe`. The first-stage template builds the
/// same path from `${netX/mac:hexhyp}`.
#[must_use]
pub fn script(mac: MacAddr) -> String {
    format!("boot/{}.ipxe", mac.hyphenated())
}

/// The HTTP path of a machine's failure report: `boot/report/<mac-with-dashes>`, with the query `stage` and `errno`.
#[must_use]
pub fn report(mac: MacAddr) -> String {
    format!("boot/report/{}", mac.hyphenated())
}

/// The boot file that leads a machine from TFTP to its script: `machines/<mac-with-dashes>.ipxe`.
pub fn chain_file(mac: MacAddr) -> Result<BootPath> {
    format!("machines/{}.ipxe", mac.hyphenated()).parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_text::{BootTemplates, FirstScript, ipxe};

    #[test]
    fn the_first_stage_asks_where_the_script_is() {
        let mac: MacAddr = "52:54:00:AA:00:01".parse().unwrap();
        let server_url = "http://10.0.0.1".parse().unwrap();
        let first = BootTemplates::load(None).unwrap().first(&FirstScript { server_url }).unwrap();
        let settings = [("netX/mac".to_owned(), mac.to_string())].into();
        let trace = ipxe::model::run(&first, settings, &mut |_| true);
        let url = format!("http://10.0.0.1/{}", script(mac));
        assert_eq!(trace.ending, ipxe::model::Ending::Replaced { url });
        assert_eq!(report(mac), "boot/report/52-54-00-aa-00-01");
        assert_eq!(chain_file(mac).unwrap().as_str(), "machines/52-54-00-aa-00-01.ipxe");
    }
}
