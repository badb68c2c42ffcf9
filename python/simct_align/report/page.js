"use strict";
(() => {
  const sample = JSON.parse(document.getElementById("facts").textContent).sample;
  const byId = (id) => document.getElementById(id);
  const marks = { multi: "~", unmatched: "!", special: "^", straddled: "\u203a" };
  const KINDS_OF_UNITS = 3;
  const units = []; // all units and unmatched spans of all texts, in order
  let current = -1;

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // What a span is to filters and to readers.
  function styleOf(kind, straddled) {
    if (kind >= KINDS_OF_UNITS) return "unmatched";
    return straddled ? "straddled" : sample.kinds[kind];
  }

  function tokenLine(side, places) {
    const line = element("span");
    places.forEach((place, number) => {
      if (number) line.append(element("span", "edge", "\u250a"));
      line.append(element("bdi", "", sample.tokens[side][place][1]));
    });
    return line;
  }

  function words(side, places) {
    return places.map((place) => sample.tokens[side][place][1]).join(" ") || "nothing";
  }

  function drawText(text) {
    const box = element("div", "textbox");
    const cut = text.total_spans > text.spans.length;
    const where = text.line ? `, line ${text.line}` : "";
    const heading = element("h3", "", `Text ${text.number + 1}${where}`);
    heading.id = `text-${text.number}`;
    const list = element("div", "units");
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-labelledby", heading.id);
    let teacher = 0;
    let student = 0;
    for (const [nTeacher, nStudent, kind, textClass, straddled] of text.spans) {
      const unit = {
        teacher: text.teacher.slice(teacher, teacher + nTeacher),
        student: text.student.slice(student, student + nStudent),
        kind,
        style: styleOf(kind, straddled),
        textClass: kind < KINDS_OF_UNITS ? sample.classes[textClass] : "",
        positions: [teacher, student],
        number: units.length,
      };
      teacher += nTeacher;
      student += nStudent;
      const shown = element("div", `u ${unit.style}`);
      shown.setAttribute("role", "option");
      shown.setAttribute("aria-selected", "false");
      shown.setAttribute(
        "aria-label",
        `${unit.style}: teacher ${words("teacher", unit.teacher)}, student ${words("student", unit.student)}`,
      );
      shown.tabIndex = -1;
      shown.dataset.number = unit.number;
      shown.append(tokenLine("teacher", unit.teacher), tokenLine("student", unit.student));
      const mark = marks[unit.style];
      if (mark) shown.append(element("i", "mark", mark));
      unit.shown = shown;
      units.push(unit);
      list.append(shown);
    }
    if (list.firstChild) list.firstChild.tabIndex = 0;
    box.append(heading, list);
    if (!text.spans.length) box.append(element("p", "hint", "This text is empty."));
    if (cut) {
      box.append(element("p", "hint", `The first ${text.spans.length} of ${text.total_spans} units and unmatched spans; the rest is too long to show.`));
    }
    return box;
  }

  function table(side, unit) {
    const rows = unit[side].map((place, number) => {
      const [id, text, hex] = sample.tokens[side][place];
      const row = element("tr");
      const position = unit.positions[side === "teacher" ? 0 : 1] + number;
      const bytes = hex.replace(/../g, "$& ").trim() || "none";
      row.append(element("th", "", side), element("td", "", `position ${position}`), element("td", "", `id ${id}`));
      const cell = element("td");
      const code = element("code", "", text);
      const isolated = element("bdi");
      isolated.append(code);
      cell.append(isolated);
      row.append(cell, element("td", "", `bytes ${bytes}`));
      return row;
    });
    return rows;
  }

  function hideDetail() {
    byId("detail").hidden = true;
  }

  function describe(unit) {
    const inner = element("div", "inner");
    const close = element("button", "close", "Close");
    close.type = "button";
    close.addEventListener("click", hideDetail);
    const kind = unit.kind < KINDS_OF_UNITS
      ? `${sample.kinds[unit.kind]} unit`
      : `unmatched: ${sample.kinds[unit.kind].replaceAll("_", " ")}`;
    const more = [unit.textClass, unit.style === "straddled" ? "straddled at its end" : ""].filter(Boolean);
    inner.append(close, element("h3", "", [kind, ...more].join(" \u00b7 ")));
    const scroll = element("div", "wide");
    scroll.tabIndex = 0; // so that the keyboard scrolls a long line of bytes
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "Tokens of the unit");
    const made = element("table");
    made.append(...table("teacher", unit), ...table("student", unit));
    scroll.append(made);
    inner.append(scroll);
    byId("detail").replaceChildren(inner);
    byId("detail").hidden = false;
  }

  function choose(number, focus) {
    if (current >= 0) {
      units[current].shown.classList.remove("current");
      units[current].shown.setAttribute("aria-selected", "false");
    }
    current = number;
    const { shown } = units[number];
    for (const sibling of shown.parentNode.querySelectorAll('[tabindex="0"]')) sibling.tabIndex = -1;
    shown.tabIndex = 0;
    shown.classList.add("current");
    shown.setAttribute("aria-selected", "true");
    if (focus) {
      shown.focus({ preventScroll: true });
      shown.scrollIntoView({ block: "center" });
    }
    describe(units[number]);
  }

  const matchesFilter = (unit) => {
    const kind = byId("kind").value;
    const textClass = byId("class").value;
    // A straddled unit is a shared unit.
    const isKind = !kind || unit.style === kind || (kind === "shared" && unit.style === "straddled");
    return isKind && (!textClass || unit.textClass === textClass);
  };

  function filter() {
    let found = 0;
    for (const unit of units) {
      const matches = matchesFilter(unit);
      unit.shown.classList.toggle("dim", !matches);
      found += matches;
    }
    byId("found").textContent = `${found.toLocaleString("en")} of ${units.length.toLocaleString("en")} match`;
    document.querySelector('[data-jump="match"]').disabled = !found;
  }

  function jump(what) {
    const wanted = what === "match" ? matchesFilter : (unit) => unit.style === what;
    for (let step = 1; step <= units.length; step += 1) {
      const number = (current + step) % units.length;
      if (wanted(units[number])) {
        choose(number, true);
        return;
      }
    }
  }

  function options(select, names) {
    for (const name of names) select.append(new Option(name, name));
  }

  const texts = byId("texts");
  for (const text of sample.texts) texts.append(drawText(text));
  const styles = ["shared", "multi", "special", "unmatched", "straddled"];
  options(byId("kind"), styles.filter((style) => units.some((unit) => unit.style === style)));
  options(byId("class"), sample.classes.filter((name) => units.some((unit) => unit.textClass === name)));
  byId("kind").addEventListener("change", filter);
  byId("class").addEventListener("change", filter);
  for (const button of document.querySelectorAll("[data-jump]")) {
    button.addEventListener("click", () => jump(button.dataset.jump));
    const what = button.dataset.jump;
    button.disabled = !units.some((unit) => what === "match" || unit.style === what);
  }
  filter();

  const unitOf = (event) => event.target.closest?.("#texts .u");
  const placeOf = (event) => `${event.clientX} ${event.clientY}`;
  let mouse = "";
  document.addEventListener("mousemove", (event) => {
    mouse = placeOf(event);
  });
  texts.addEventListener("mouseover", (event) => {
    // Text that scrolls under a mouse that rests is not what its user looks at.
    const moved = mouse !== placeOf(event);
    const shown = unitOf(event);
    if (moved && shown) describe(units[shown.dataset.number]);
  });
  texts.addEventListener("focusin", (event) => {
    const shown = unitOf(event);
    if (shown && Number(shown.dataset.number) !== current) choose(Number(shown.dataset.number), false);
  });
  texts.addEventListener("click", (event) => {
    const shown = unitOf(event);
    if (shown) choose(Number(shown.dataset.number), false);
  });
  texts.addEventListener("keydown", (event) => {
    const shown = unitOf(event);
    if (!shown) return;
    const number = Number(shown.dataset.number);
    const first = Number(shown.parentNode.firstChild.dataset.number);
    const last = Number(shown.parentNode.lastChild.dataset.number);
    const next = {
      ArrowRight: number + 1, ArrowDown: number + 1, ArrowLeft: number - 1, ArrowUp: number - 1,
      Home: first, End: last,
    }[event.key];
    if (event.key === "Escape") hideDetail();
    if (next === undefined || next < 0 || next >= units.length) return;
    event.preventDefault();
    choose(next, true);
  });
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
