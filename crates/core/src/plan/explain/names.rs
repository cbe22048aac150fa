//! Names that lead somewhere, and order.
//!
//! Invariant: in the order of the codes.

use super::{Explanation, explanation};

pub(super) const ALL: &[Explanation] = &[
    explanation(
        "P0201",
        "an unknown site",
        "A service, a vault or a key is placed at a site that the plan does not declare, so nobody knows where that is or how to act there.",
        "primary = \"nort\"",
        "primary = \"north\"",
    ),
    explanation(
        "P0202",
        "an unknown vault",
        "A data set that is protected to a vault that does not exist is not protected.",
        "protect = [{ to = \"vault\", every = \"1h\" }]",
        "protect = [{ to = \"main\", every = \"1h\" }]",
    ),
    explanation(
        "P0203",
        "an unknown component",
        "A component waits for another that the service does not have; the order in which things start would be a guess.",
        "after = [\"database\"]",
        "after = [\"db\"]",
    ),
    explanation(
        "P0204",
        "an unknown data set",
        "A key is said to open a data set that does not exist; the data set that was meant cannot be opened by it.",
        "datasets = [\"order\"]",
        "datasets = [\"orders\"]",
    ),
    explanation(
        "P0205",
        "an unknown service",
        "A drill for a service that does not exist rehearses nothing, and looks as if it did.",
        "[drill.monthly]\nservice = \"shp\"",
        "[drill.monthly]\nservice = \"shop\"",
    ),
    explanation(
        "P0206",
        "an unknown scenario",
        "An objective or a drill is for a scenario that is neither built in nor declared. Built in are instance-lost, zone-lost, site-lost, region-lost, provider-lost, data-corrupted and data-destroyed.",
        "objective.region-down = { rto = \"2h\" }",
        "objective.region-lost = { rto = \"2h\" }",
    ),
    explanation(
        "P0207",
        "an unknown host",
        "A component runs on a host that its site does not declare, so it has no address: it could neither be started nor found.",
        "runs-on = { north = \"app9\" }",
        "runs-on = { north = \"app1\" }",
    ),
    explanation(
        "P0208",
        "an approval that nobody can give",
        "With `approval = true` every run waits for a person who approves. If the plan has none, every recovery waits for ever.",
        "approval = true",
        "approval = true\n\n[person.anna]\napproves = true\nkey = \"…\"",
    ),
    explanation(
        "P0209",
        "a template that stands for nothing",
        "A `{{ name }}` is filled in for the site where something starts. A name that nobody knows would be found at the moment of recovery, which is the worst one.",
        "command = [\"app\", \"--db\", \"{{ dataset.order.path }}\"]",
        "command = [\"app\", \"--db\", \"{{ dataset.orders.path }}\"]",
    ),
    explanation(
        "P0210",
        "components that wait for each other",
        "`after` gives the order in which components start. In a circle none can be the first.",
        "component.app.after = [\"db\"]\ncomponent.db.after = [\"app\"]",
        "component.app.after = [\"db\"]",
    ),
    explanation(
        "P0211",
        "a recovery site that is none",
        "The primary site is what has been lost, so it is no place to recover at. Each other site is named once, the preferred one first.",
        "primary = \"north\"\nrecovery = [\"north\"]",
        "primary = \"north\"\nrecovery = [\"south\"]",
    ),
    explanation(
        "P0212",
        "two data sets of one name",
        "Vaults, keys and commands know a data set by its name alone. Two of one name would share their history, and a restore could bring back the wrong one.",
        "component.app.dataset.data = …\ncomponent.worker.dataset.data = …",
        "component.app.dataset.uploads = …\ncomponent.worker.dataset.jobs = …",
    ),
    explanation(
        "P0213",
        "a scenario that says nothing",
        "Scenarios stand in the document that people read and accept. One of your own needs a sentence that says what happens.",
        "[scenario.flood]\nper-year = 0.01",
        "[scenario.flood]\ndescribe = \"the river is in the machine room\"\nper-year = 0.01",
    ),
    explanation(
        "P0214",
        "two services of one domain name",
        "Traffic for a name goes where its service is. With two services behind one name, moving one would move the other.",
        "service.a.traffic.name = \"shop.example.com.\"\nservice.b.traffic.name = \"shop.example.com.\"",
        "service.a.traffic.name = \"a.example.com.\"\nservice.b.traffic.name = \"b.example.com.\"",
    ),
    explanation(
        "P0215",
        "a component used but not waited for",
        "A text of this component names another one, and yet it does not start after it. It may work on a quiet day and fail when everything starts at once.",
        "launch = { command = [\"app\", \"--db\", \"{{ component.db.url }}\"] }",
        "after = [\"db\"]\nlaunch = { command = [\"app\", \"--db\", \"{{ component.db.url }}\"] }",
    ),
];
