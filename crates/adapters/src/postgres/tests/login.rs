//! Every way in, and every way of being kept out.

use std::process::Command;
use std::sync::LazyLock;

use super::super::error::SessionError;
use super::super::session::{Purpose, Session};
use super::Written;
use super::cluster::{self, Cluster};

/// One server for all of these tests: it knows TLS, and asks each role for something else.
static SERVER: LazyLock<Cluster> = LazyLock::new(|| {
    let mut cluster = Cluster::new();
    certificates(&cluster);
    cluster.set("ssl", "on");
    for (setting, file) in [("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key")] {
        cluster.set(setting, &cluster.place().join(file).display().to_string());
    }
    cluster.let_in(
        "local all postgres trust\n\
         local all clear password\n\
         local replication boat scram-sha-256\n\
         host all clear 127.0.0.1/32 password\n\
         host all hashed 127.0.0.1/32 md5\n\
         host all gss 127.0.0.1/32 gss\n\
         hostssl all onlytls 127.0.0.1/32 scram-sha-256\n\
         hostnossl all onlyplain 127.0.0.1/32 scram-sha-256\n\
         host all boat 127.0.0.1/32 scram-sha-256\n\
         hostssl all free 127.0.0.1/32 trust\n",
    );
    cluster.start();
    let roles = ["clear", "gss", "onlytls", "onlyplain", "free"]
        .map(|role| format!("create role {role} login password 'secret word'"));
    cluster.psql(&roles.join(";"));
    cluster.psql(
        "create role boat login replication password 'secret word'; create role weak login password 'secret word'",
    );
    cluster.psql("set password_encryption = 'md5'; create role hashed login password 'secret word'");
    cluster
});

/// An authority, a certificate for `db.example` and 127.0.0.1 by it, and a second authority that signed nothing.
fn certificates(cluster: &Cluster) {
    let script = "set -e; cd \"$0\"; new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
        for name in ca other; do openssl req -x509 $new -keyout $name.key -out $name.crt -days 10 -subj /CN=$name; done
        openssl req $new -keyout server.key -out server.csr -subj /CN=ignored
        echo 'subjectAltName=DNS:db.example,IP:127.0.0.1' > names
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 10 -sha384 -extfile names -out server.crt
        chmod 600 server.key; chmod 644 *.crt";
    cluster::run(cluster::as_postgres("sh").args(["-c", script]).arg(cluster.place()));
}

fn at(more: &str) -> String {
    format!("hostaddr=127.0.0.1\nport={}\ndbname=postgres\n{more}", SERVER.port())
}

async fn enter(settings: &str) -> Result<Session, SessionError> {
    Session::open(&Written::new().door(&at(settings)), Purpose::Queries, "").await
}

/// Whether this session is encrypted, as the server sees it.
async fn is_encrypted(session: &mut Session) -> bool {
    let row = session.query_one("select ssl from pg_stat_ssl where pid = pg_backend_pid()").await.unwrap();
    row.get(0) == Some("t")
}

#[tokio::test]
async fn each_method_lets_in_with_the_right_password_and_says_what_to_do_about_a_wrong_one() {
    for (role, mode) in
        [("boat", "disable"), ("boat", "require"), ("hashed", "disable"), ("hashed", "require"), ("clear", "require")]
    {
        let mut session = enter(&format!("user={role}\nsslmode={mode}\npassword=secret word")).await.unwrap();
        assert_eq!(session.query_one("select current_user").await.unwrap().get(0), Some(role));
        assert_eq!(is_encrypted(&mut session).await, mode == "require", "{role} {mode}");

        let error = enter(&format!("user={role}\nsslmode={mode}\npassword=wrong word")).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("28P01"), "{error}");
        let said = format!("{error} {error:?}");
        assert!(said.contains(&format!("see that the password of {role} in the service file")), "{said}");
        assert!(!said.contains("wrong word") && !error.may_pass(), "{said}");

        let error = enter(&format!("user={role}\nsslmode={mode}")).await.unwrap_err();
        assert!(matches!(error, SessionError::Authentication { .. }), "{error}");
        assert!(error.to_string().contains("write it to ") && error.to_string().contains(".pgpass"), "{error}");
    }
}

#[tokio::test]
async fn a_password_goes_in_the_clear_only_where_nobody_can_read_it() {
    let error = enter("user=clear\nsslmode=disable\npassword=secret word").await.unwrap_err();
    assert!(matches!(error, SessionError::Authentication { .. }), "{error}");
    assert!(error.to_string().contains("not encrypted: set `sslmode=require`"), "{error}");
    let socket = format!("host={}\nport={}\ndbname=postgres\n", SERVER.socket_directory().display(), SERVER.port());
    let way = Written::new().door(&format!("{socket}user=clear\npassword=secret word\nsslmode=require"));
    Session::open(&way, Purpose::Queries, "").await.unwrap();
}

#[tokio::test]
async fn a_method_that_is_missing_here_is_named() {
    let error = enter("user=gss\nsslmode=disable\npassword=x").await.unwrap_err();
    assert!(error.to_string().contains("GSSAPI, which lifeboat cannot do: set `scram-sha-256`"), "{error}");
    assert!(!error.may_pass());
}

#[tokio::test]
async fn who_is_not_let_in_learns_which_line_lacks() {
    let error = enter("user=weak\nsslmode=disable\npassword=secret word").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("28000"));
    assert!(error.to_string().contains("let it in from this host to postgres in its pg_hba.conf"), "{error}");
    let written = Written::new();
    let way = written.door(&at("user=boat\nsslmode=disable\npassword=secret word"));
    let error = Session::open(&way, Purpose::Replication, "").await.unwrap_err();
    assert!(error.to_string().contains("let boat in for `replication`"), "{error}");
}

#[tokio::test]
async fn password_files_serve_logins_and_say_why_they_do_not() {
    let line = |database: &str| format!("127.0.0.1:{}:{database}:boat:secret word\n", SERVER.port());
    let settings = at("user=boat\nsslmode=disable");
    let written = Written::new();
    let enter = async || Session::open(&written.door(&settings), Purpose::Queries, "").await;
    written.file(".pgpass", &line("postgres"), 0o600);
    enter().await.unwrap();
    written.file(".pgpass", &line("another"), 0o600);
    let error = enter().await.unwrap_err();
    assert!(error.to_string().contains("has no line for boat there"), "{error}");
    written.file(".pgpass", &line("postgres"), 0o644);
    let error = enter().await.unwrap_err();
    assert!(error.to_string().contains("group or others may read it: `chmod 600` it"), "{error}");

    // A replication's database is called so; through a socket, too.
    let host = SERVER.socket_directory().display().to_string();
    written.file(".pgpass", &format!("{host}:*:replication:boat:secret word\n"), 0o600);
    let way = written.door(&format!("host={host}\nport={}\nuser=boat", SERVER.port()));
    let mut session = Session::open(&way, Purpose::Replication, "").await.unwrap();
    session.identify_system().await.unwrap();
    // And libpq's own program goes the same way by what it is given.
    let mut program = Command::new(cluster::path_of("pg_receivewal"));
    for variable in super::super::door::Door::variables() {
        program.env_remove(variable);
    }
    program.envs(way.environment()).args(["--create-slot", "--slot=by_environment"]);
    assert!(program.output().unwrap().status.success());
    assert_eq!(SERVER.psql("select count(*) from pg_replication_slots where slot_name = 'by_environment'"), "1");
    assert!(!format!("{way:?} {way} {:?}", way.environment()).contains("secret word"));
}

#[tokio::test]
async fn certificates_count_as_far_as_the_mode_says() {
    let file = |name: &str| SERVER.place().join(name).display().to_string();
    let (ca, other) = (file("ca.crt"), file("other.crt"));
    let good = [
        format!("host=db.example\nsslmode=verify-full\nsslrootcert={ca}"),
        format!("host=127.0.0.1\nsslmode=verify-full\nsslrootcert={ca}"),
        format!("sslmode=verify-full\nsslrootcert={ca}"),
        // The name does not count here, the chain does.
        format!("host=wrong.example\nsslmode=verify-ca\nsslrootcert={ca}"),
        format!("host=wrong.example\nsslmode=require\nsslrootcert={ca}"),
        "host=wrong.example\nsslmode=require".to_owned(),
        "host=wrong.example".to_owned(),
        // A certificate that is named itself.
        format!("host=db.example\nsslmode=verify-full\nsslrootcert={}", file("server.crt")),
    ];
    for settings in good {
        let mut session = enter(&format!("user=boat\npassword=secret word\n{settings}")).await.unwrap();
        assert!(is_encrypted(&mut session).await, "{settings}");
    }
    let bad = [
        (format!("host=wrong.example\nsslmode=verify-full\nsslrootcert={ca}"), "is not for wrong.example"),
        (
            format!("host=wrong.example\nsslmode=verify-full\nsslrootcert={}", file("server.crt")),
            "is not for wrong.example",
        ),
        (format!("host=db.example\nsslmode=verify-full\nsslrootcert={other}"), "signed its certificate"),
        (format!("host=db.example\nsslmode=verify-ca\nsslrootcert={other}"), "signed its certificate"),
        (format!("host=db.example\nsslmode=require\nsslrootcert={other}"), "signed its certificate"),
        (format!("host=db.example\nsslmode=require\nsslrootcert={ca}.none"), "cannot be read"),
        (format!("host=db.example\nsslmode=verify-ca\nsslrootcert={}", file("names")), "no certificate"),
        ("host=db.example\nsslmode=verify-full\nsslrootcert=system".to_owned(), "signed its certificate"),
    ];
    for (settings, said) in bad {
        let error = enter(&format!("user=boat\npassword=secret word\n{settings}")).await.unwrap_err();
        assert!(matches!(error, SessionError::Tls { .. }) && error.to_string().contains(said), "{settings}: {error}");
        assert!(!error.may_pass(), "{error}");
    }
    // `prefer` goes on without, as libpq does.
    let settings = format!("user=boat\npassword=secret word\nhost=db.example\nsslmode=prefer\nsslrootcert={other}");
    assert!(!is_encrypted(&mut enter(&settings).await.unwrap()).await);
}

#[tokio::test]
async fn logins_are_bound_to_the_certificate_where_both_sides_can() {
    let bound = "password=secret word\nchannel_binding=require";
    enter(&format!("user=boat\nsslmode=require\n{bound}")).await.unwrap();
    for settings in ["user=boat\nsslmode=disable", "user=hashed\nsslmode=require", "user=free\nsslmode=require"] {
        let error = enter(&format!("{settings}\n{bound}")).await.unwrap_err();
        assert!(error.to_string().contains("does not bind the login"), "{settings}: {error}");
    }
    enter("user=free\nsslmode=require").await.unwrap();
}

#[tokio::test]
async fn what_a_server_takes_encrypted_or_not_is_tried_as_the_mode_says() {
    let cases = [
        ("onlytls", "allow", Some(true)),
        ("onlytls", "prefer", Some(true)),
        ("onlytls", "require", Some(true)),
        ("onlytls", "disable", None),
        ("onlyplain", "allow", Some(false)),
        ("onlyplain", "prefer", Some(false)),
        ("onlyplain", "require", None),
        ("boat", "allow", Some(false)),
        ("boat", "prefer", Some(true)),
    ];
    for (role, mode, encrypted) in cases {
        match (enter(&format!("user={role}\npassword=secret word\nsslmode={mode}")).await, encrypted) {
            (Ok(mut session), Some(encrypted)) => {
                assert_eq!(is_encrypted(&mut session).await, encrypted, "{role} {mode}")
            }
            (Err(error), None) => assert_eq!(error.sqlstate(), Some("28000"), "{role} {mode}: {error}"),
            (other, _) => panic!("{role} {mode}: {other:?}"),
        }
    }
    let without = Cluster::started();
    let way = |mode: &str| {
        let settings = format!("hostaddr=127.0.0.1\nport={}\nuser=postgres\nsslmode={mode}", without.port());
        Written::new().door(&settings)
    };
    for mode in ["disable", "allow", "prefer"] {
        Session::open(&way(mode), Purpose::Queries, "").await.unwrap();
    }
    let error = Session::open(&way("require"), Purpose::Queries, "").await.unwrap_err();
    assert!(error.to_string().contains("does not offer it: set `ssl = on` there"), "{error}");
}
