//! Maps live on in their pins, and only if they fit; what is damaged is repaired or refused by name.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use lb_tests::tiny_program::TinyProgram;
use steerway::datapath::load::{LoadError, LoadReport, OBJECT, load};
use steerway::datapath::pins::PinError;

use super::stand_in::STAND_IN;
use super::{Site, block_in, options};

fn id(site: &Site, name: &str) -> u32 {
    let data = MapData::from_pin(site.pins.map(name)).expect("a pinned map");
    data.info().expect("its properties").id()
}

fn names(report: &LoadReport) -> Vec<&str> {
    report.replaced.iter().map(|(name, _)| name.as_str()).collect()
}

/// Puts another map in place of a pin.
fn replace_pin(site: &Site, name: &str) {
    let path = site.pins.map(name);
    fs::remove_file(&path).expect("a pin");
    Array::<MapData, u32>::create(7, 0)
        .expect("a map")
        .pin(path)
        .expect("a pin of it");
}

#[test]
fn maps_and_what_they_hold_live_on() {
    let site = Site::new("maps");
    let first = site.load().expect("a first load");
    assert!(first.report.created.len() > 10, "{:?}", first.report);
    assert_eq!((first.report.reused.len(), first.report.replaced.len()), (0, 0));
    let mut services: Array<MapData, u64> = Map::Array(MapData::from_pin(site.pins.map("services")).unwrap())
        .try_into()
        .expect("an array of words");
    services.set(5, 4711, 0).expect("a word");
    drop((first, services));
    let second = site.load().expect("a second load");
    assert_eq!(
        (second.report.created.len(), second.report.replaced.len()),
        (0, 0),
        "{:?}",
        second.report
    );
    let services: Array<&MapData, u64> = second
        .programs
        .map("services")
        .expect("a map")
        .try_into()
        .expect("an array of words");
    assert_eq!(services.get(&5, 0).expect("the word"), 4711);
    assert_eq!(
        fs::read_link(site.pins.root().join("layout")).unwrap().to_str(),
        Some("steerway-layout-5")
    );
}

#[test]
fn the_agent_s_own_object_is_loaded_and_its_maps_live_on() {
    let site = Site::new("own");
    let first = load(OBJECT, &site.pins, &options(256))
        .expect("the agent's programs")
        .report;
    assert!(
        first.created.len() > 15 && first.created.contains(&"flows_v6".to_owned()),
        "{first:?}"
    );
    let second = load(OBJECT, &site.pins, &options(256))
        .expect("the agent's programs")
        .report;
    assert_eq!(second.reused, first.created);
}

#[test]
fn a_flow_table_of_another_size_starts_anew_and_alone() {
    let site = Site::new("size");
    drop(site.load_sized(256).expect("a first load"));
    let before = [id(&site, "backends"), id(&site, "flows_v4")];
    let report = site.load_sized(512).expect("a second load").report;
    assert_eq!(names(&report), ["flows_v4", "flows_v6"]);
    assert_eq!(id(&site, "backends"), before[0]);
    assert_ne!(id(&site, "flows_v4"), before[1]);
    for wrong in [0, 1, 300] {
        assert!(matches!(site.load_sized(wrong), Err(LoadError::FlowSets(sets)) if sets == wrong));
    }
}

#[test]
fn a_foreign_map_in_the_image_is_replaced_with_all_that_belongs_to_it() {
    let site = Site::new("foreign-map");
    drop(site.load().expect("a first load"));
    let counters = id(&site, "reasons");
    replace_pin(&site, "backends");
    let report = site.load().expect("a second load").report;
    assert!(
        names(&report).contains(&"backends") && names(&report).contains(&"flows_v4"),
        "{report:?}"
    );
    assert_eq!(report.reused, ["devices", "fragments_v4", "fragments_v6", "reasons"]);
    assert_eq!(id(&site, "reasons"), counters);
    assert!(site.load().expect("a third load").report.replaced.is_empty());
}

#[test]
fn a_lost_map_is_made_anew() {
    let site = Site::new("lost-map");
    drop(site.load().expect("a first load"));
    fs::remove_file(site.pins.map("reasons")).expect("the counters' pin");
    let report = site.load().expect("a second load").report;
    assert_eq!(report.created, ["reasons"]);
    assert_eq!(report.replaced, []);
}

#[test]
fn a_pin_that_is_no_map_is_refused_by_name_and_nothing_changes() {
    let site = Site::new("no-map");
    drop(site.load().expect("a first load"));
    let before = id(&site, "flows_v4");
    let path = site.pins.map("services");
    fs::remove_file(&path).expect("a pin");
    fs::create_dir(&path).expect("a folder in its place");
    let error = site.load().map(drop).expect_err("no map").to_string();
    assert!(
        error.contains(path.to_str().unwrap()) && error.contains("remove the file"),
        "{error}"
    );
    fs::remove_dir(&path).expect("the folder");
    // A program: the kernel answers questions about it as if it were a map.
    let program = TinyProgram::marking(1, -1);
    let program_id = program.program().info().expect("its properties").id().to_string();
    site.node
        .ok(&["bpftool", "prog", "pin", "id", &program_id, path.to_str().unwrap()]);
    let error = site.load().map(drop).expect_err("no map").to_string();
    assert!(
        error.contains(path.to_str().unwrap()) && error.contains("bpf-prog"),
        "{error}"
    );
    assert_eq!(id(&site, "flows_v4"), before);
    // The program goes with its last user.
    fs::remove_file(&path).expect("its pin");
}

#[test]
fn a_directory_that_holds_something_else_is_refused() {
    let site = Site::new("foreign-directory");
    fs::create_dir_all(site.pins.root().join("cilium")).expect("a foreign folder");
    let result = site.load().map(drop);
    assert!(
        matches!(&result, Err(LoadError::Pins(PinError::Foreign { entry, .. })) if entry == "cilium"),
        "{result:?}"
    );
    assert!(!site.pins.root().join("maps").exists());
    fs::remove_dir(site.pins.root().join("cilium")).expect("the foreign folder");
}

#[test]
fn a_lost_mark_and_another_layout_give_new_maps() {
    let site = Site::new("layout");
    let mark = site.pins.root().join("layout");
    drop(site.load().expect("a first load"));
    for damage in [None, Some("steerway-layout-999"), Some("nonsense")] {
        let before = id(&site, "config");
        fs::remove_file(&mark).expect("the mark");
        if let Some(target) = damage {
            symlink(target, &mark).expect("another mark");
        }
        let report = site.load().expect("a load").report;
        assert!(
            names(&report).contains(&"config") && report.reused.is_empty(),
            "{damage:?} {report:?}"
        );
        assert_ne!(id(&site, "config"), before);
        assert_eq!(fs::read_link(&mark).unwrap().to_str(), Some("steerway-layout-5"));
        assert!(site.load().expect("another load").report.replaced.is_empty());
    }
}

#[test]
fn a_failed_load_leaves_the_pins_whole() {
    let site = Site::new("failed");
    drop(site.load().expect("a first load"));
    let before = [id(&site, "config"), id(&site, "flows_v4")];
    let truncated = &STAND_IN[..STAND_IN.len() / 2];
    // Another size, so that a success would replace the flow tables.
    assert!(load(truncated, &site.pins, &options(512)).is_err());
    assert!(matches!(load(&[], &site.pins, &options(512)), Err(LoadError::NoObject)));
    assert_eq!([id(&site, "config"), id(&site, "flows_v4")], before);
}

#[test]
fn the_directory_has_one_owner_at_a_time() {
    let site = Site::new("owner");
    drop(site.load().expect("a load, which makes the directory"));
    site.run_dir.write_owner(4711).expect("a note");
    block_in(&site.node, || async {
        let first = site
            .pins
            .lock(&site.run_dir, Duration::ZERO)
            .await
            .expect("the directory");
        let refused = site
            .pins
            .lock(&site.run_dir, Duration::from_millis(300))
            .await
            .map(drop);
        let error = refused.expect_err("the directory has an owner").to_string();
        assert!(error.contains("process 4711") && error.contains("stop it"), "{error}");
        drop(first);
        site.pins
            .lock(&site.run_dir, Duration::ZERO)
            .await
            .expect("a free directory");
    });
}

#[test]
fn a_new_directory_takes_no_dots() {
    let site = Site::new("dots");
    let pins = steerway::datapath::pins::PinDir::new(site.pins.root().with_extension("d"));
    let error = pins.create().expect_err("bpffs refuses it");
    assert!(matches!(error, PinError::Dot(_)), "{error}");
}
