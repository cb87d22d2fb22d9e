// The panel of the section "What if": looks numbers up in the grid beside it and writes the table.
// It computes two things itself, both exact: clock over cycles, and bits times energy per bit.
"use strict";
(() => {
  const panel = document.currentScript.parentElement;
  const form = panel.querySelector("form");
  const output = panel.querySelector("output");
  const table = panel.querySelector("table");
  const grid = JSON.parse(panel.querySelector("script[type='application/json']").textContent);
  const mark = "#what-if?"; // what the address holds before the state

  const controls = [...form.elements];
  const state = () => Object.fromEntries(controls.map((control) => [control.name, control.value]));

  // Half is rounded up, as in Python's table.
  function fixed(value, decimals) {
    const [whole, part] = value.toFixed(decimals).split(".");
    const separated = whole.replace(/\B(?=(\d{3})+$)/g, "\u202f");
    return part ? `${separated}.${part}` : separated;
  }
  const shown = (value) => fixed(value, value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3);

  function lookUp(at, ...keys) {
    for (const key of keys) {
      if (!Object.hasOwn(at, key)) throw new Error(`the grid has no ${JSON.stringify(key)}`);
      at = at[key];
    }
    return at;
  }

  function attention(chosen, format) {
    const engines = lookUp(grid.points, chosen.model, chosen.tokens, format);
    // integers have one plane per cycle
    const point = lookUp(engines, chosen.planes in engines ? chosen.planes : "1/1");
    const cycles = lookUp(point.cycles, chosen.lanes, chosen.bits);
    const memory = (point.moved_bits * Number(chosen.pj)) / 1e6;
    return {
      bytes: point.bytes,
      cycles,
      limit: lookUp(point.limit, chosen.lanes, chosen.bits),
      speed: (1e6 * Number(chosen.clock)) / cycles,
      engine: point.engine,
      onChip: point.on_chip,
      memory,
      all: point.engine + point.on_chip + memory,
      loss: Object.hasOwn(grid.losses, format) ? grid.losses[format] : "\u2013",
    };
  }

  function rows(chosen) {
    const formats = [...new Set([chosen.code, ...grid.rivals])];
    const found = formats.map((format) => attention(chosen, format));
    const reference = found[formats.indexOf(grid.reference)];
    const cells = [
      (one) => shown(one.bytes / 1e6),
      (one) => shown(one.cycles / 1e6),
      (one) => one.limit,
      (one) => shown(one.speed),
      (one) => fixed(reference.cycles / one.cycles, 2),
      (one) => shown(one.engine),
      (one) => shown(one.onChip),
      (one) => shown(one.memory),
      (one) => shown(one.all),
      (one) => fixed(one.all / reference.all, 2),
      (one) => one.loss,
    ];
    return [formats, ...cells.map((cell) => found.map(cell))];
  }

  function said(chosen) {
    const tokens = fixed(Number(chosen.tokens), 0).replaceAll("\u202f", ",");
    return (
      `${chosen.model}, ${tokens} tokens; memory of ${chosen.bits} bits per cycle, ` +
      `${Number(chosen.pj)} pJ per bit; ${chosen.lanes} lanes, ${chosen.planes} planes per cycle, ` +
      `${Number(chosen.clock)} MHz; ${chosen.code}.`
    );
  }

  function write(lines) {
    lines.forEach((line, number) => {
      const row = table.rows[number];
      while (row.cells.length > 1) row.deleteCell(-1);
      for (const text of line) {
        const cell = document.createElement(number ? "td" : "th");
        cell.className = "number";
        if (!number) cell.scope = "col";
        cell.textContent = text;
        row.append(cell);
      }
    });
  }

  function update() {
    const wrong = controls.find((control) => !control.validity.valid);
    if (wrong) {
      output.textContent = `${wrong.labels[0].firstChild.textContent.trim()}: ${wrong.validationMessage}`;
      write([...table.rows].map((row, number) => [number ? "\u2013" : ""]));
      return;
    }
    const chosen = state();
    write(rows(chosen));
    output.textContent = said(chosen);
    history.replaceState(null, "", mark + new URLSearchParams(chosen));
  }

  function read() {
    if (!location.hash.startsWith(mark)) return;
    const wanted = new URLSearchParams(location.hash.slice(mark.length));
    for (const control of controls) {
      const value = wanted.get(control.name);
      const known = control.options ? [...control.options].some((o) => o.value === value) : value;
      if (known) control.value = value;
    }
    update();
    panel.scrollIntoView();
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", read);
  form.hidden = false;
  read();
})();
