"""keepctl, the operator's command line: certificates, installation, and every call of the manager's.

`arguments` is what a command's table is made of, and its reader; `commands/` has the tables and click's commands
(printing, options, exit codes) and nothing else, `access` the options by which all of them find their manager, and the
contexts, `version` and `program` what starts without the rest.
For workloads: `job` is one workload as people type it, `manifest` reads it from a file (by strict_yaml), `run` takes it
from its file to its end, `references` finds the keep meant, `describe` puts keeps and their ends into words and exit
codes, `display` prints, errors among it, and says how a command ends. `configuration` writes a first manager.yaml.
For certificates: `authority` builds them in memory (with `inspection` the only import of cryptography), `files` writes
to disk, `layout` says which file is what, `pki` joins the three, `hostnames` knows this host's names, `inspection`
looks at what is there. `prefix`, `versions` and `installation` put the units in place.
"""
