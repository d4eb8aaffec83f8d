"use strict";
(function () {
  var HIDE = null;
  var POINTS = 240;
  var SHOWN = JSON.parse(document.getElementById("panels").textContent);
  // Where colours begin anew, lines are dashed otherwise.
  var DASHES = ["", "2 3", "8 3 2 3"];
  var LIMIT_DASH = "6 4";
  var RANGES = [["5m", 300], ["15m", 900], ["1h", 3600], ["6h", 21600], ["1d", 86400], ["1w", 604800]];
  var REFRESH_SECONDS = 10;
  var SVG = "http://www.w3.org/2000/svg";
  var chosen = new URLSearchParams(location.search);
  var seconds = (RANGES.find(function (each) { return each[0] === chosen.get("range"); }) || RANGES[2])[1];
  var scrapeSeconds = 15;
  var disks = [];

  // What stands for a label in a panel's expression: a name as a regular expression inside quotes, or any.
  function matching(name) {
    return name ? name.replace(/[^A-Za-z0-9_]/g, function (c) { return "\\\\" + c; }) : ".*";
  }

  function put(expr, rateSeconds) {
    return expr
      .split("$__rate_interval").join(rateSeconds + "s")
      .split("$instance").join(matching(chosen.get("instance")))
      .split("$disk").join(matching(chosen.get("disk")));
  }

  function nameOf(pattern, labels) {
    return pattern.replace(/\[(\w+)\]/g, function (all, label) { return labels[label] || ""; });
  }

  // A disk has one colour in all graphs; other lines take the next one.
  function lookOf(query, labels, before) {
    var at = labels.disk ? Math.max(0, disks.indexOf(labels.disk)) : before, palette = SHOWN.palette;
    return {
      colour: query.colour || palette[at % palette.length],
      dash: query.dashed ? LIMIT_DASH : DASHES[Math.floor(at / palette.length) % DASHES.length],
    };
  }

  function short(value, factor, units) {
    var at = 0;
    while (at < units.length - 1 && Math.abs(value) >= factor) { value /= factor; at += 1; }
    return String(Number(value.toPrecision(3))) + units[at];
  }

  function show(value, unit) {
    if (value === HIDE || !isFinite(value)) { return "–"; }
    if (unit === "bytes") { return short(value, 1024, [" B", " KiB", " MiB", " GiB", " TiB", " PiB"]); }
    if (unit === "bytes/s") { return short(value, 1024, [" B/s", " KiB/s", " MiB/s", " GiB/s"]); }
    if (unit === "share" || unit === "seconds/s") { return String(Number((value * 100).toPrecision(3))) + " %"; }
    if (unit === "per second") { return short(value, 1000, ["/s", "k/s", "M/s"]); }
    if (unit === "seconds") {
      if (value === 0) { return "0"; }
      return value < 1e-3 ? short(value * 1e6, 1000, [" µs"]) : value < 1 ? short(value * 1e3, 1000, [" ms"]) : short(value, 1000, [" s"]);
    }
    return String(Number(value.toPrecision(3)));
  }

  // Round numbers from 0 to at least `most`, a few of them.
  function ticks(most, unit) {
    var base = unit === "bytes" || unit === "bytes/s" ? 1024 : 10;
    var raw = (most > 0 ? most : 1) / 4;
    var scale = Math.pow(base, Math.floor(Math.log(raw) / Math.log(base) + 1e-9));
    var steps = base === 10 ? [1, 2, 2.5, 5, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
    var step = steps.find(function (each) { return each * scale >= raw * (1 - 1e-9); }) * scale;
    var found = [];
    for (var at = 0; at < most + step * 0.999; at += step) { found.push(at); }
    return found.length > 1 ? found : [0, step];
  }

  // One value for each time of the grid, HIDE where there is none.
  function onGrid(values, start, step, count) {
    var found = new Array(count).fill(HIDE);
    values.forEach(function (pair) {
      var at = Math.round((pair[0] - start) / step), value = Number(pair[1]);
      if (at >= 0 && at < count && isFinite(value)) { found[at] = value; }
    });
    return found;
  }

  // Each line on top of those before it; HIDE where none of them has a value.
  function stack(lines) {
    var below = lines[0].map(function (value, at) {
      return lines.some(function (line) { return line[at] !== HIDE; }) ? 0 : HIDE;
    });
    return lines.map(function (line) {
      var low = below;
      below = low.map(function (value, at) { return value === HIDE ? HIDE : value + (line[at] || 0); });
      return { low: low, high: below };
    });
  }

  function path(values, x, y) {
    var text = "", pen = false;
    values.forEach(function (value, at) {
      if (value === HIDE) { pen = false; return; }
      text += (pen ? "L" : "M") + x(at).toFixed(1) + " " + y(value).toFixed(1);
      // Alone it would be nothing.
      if (!pen && (at + 1 === values.length || values[at + 1] === HIDE)) { text += "h2"; }
      pen = true;
    });
    return text;
  }

  function area(layer, x, y) {
    var text = "", run = [];
    function close() {
      if (!run.length) { return; }
      var there = run.map(function (at) { return x(at).toFixed(1) + " " + y(layer.high[at]).toFixed(1); });
      var back = run.reverse().map(function (at) { return x(at).toFixed(1) + " " + y(layer.low[at]).toFixed(1); });
      text += "M" + there.concat(back).join("L") + "Z";
      run = [];
    }
    layer.high.forEach(function (value, at) {
      if (value === HIDE) { close(); } else { run.push(at); }
    });
    close();
    return text;
  }

  function clock(at) {
    var day = new Date(at * 1000), two = function (n) { return (n < 10 ? "0" : "") + n; };
    var time = two(day.getHours()) + ":" + two(day.getMinutes());
    return seconds > 86400 ? two(day.getMonth() + 1) + "-" + two(day.getDate()) + " " + time : time;
  }

  // Round times of the day, not more than `most` of them.
  function moments(start, span, most) {
    var minutes = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080];
    var step = 60 * (minutes.find(function (each) { return span / each / 60 <= most; }) || 43200);
    var away = -60 * new Date(start * 1000).getTimezoneOffset(), found = [];
    for (var at = Math.ceil((start + away) / step) * step - away; at <= start + span; at += step) { found.push(at); }
    return found;
  }

  function node(name, attributes, text) {
    var made = document.createElementNS(SVG, name);
    Object.keys(attributes || {}).forEach(function (key) { made.setAttribute(key, attributes[key]); });
    if (text !== undefined) { made.textContent = text; }
    return made;
  }

  function html(name, className, text) {
    var made = document.createElement(name);
    if (className) { made.className = className; }
    if (text !== undefined) { made.textContent = text; }
    return made;
  }

  function ask(kind, parameters) {
    return fetch("../api/v1/" + kind + "?" + new URLSearchParams(parameters)).then(function (answer) {
      return answer.json();
    }).then(function (found) {
      if (found.status !== "success") { throw new Error(found.error || "no answer"); }
      return found.data;
    });
  }

  function Graph(panel) {
    this.panel = panel;
    this.figure = html("figure", panel.wide ? "wide" : "");
    var caption = html("figcaption", "", panel.title);
    caption.appendChild(html("small", "", panel.about));
    this.svg = node("svg");
    this.legend = html("div", "legend");
    [caption, this.svg, this.legend].forEach(this.figure.appendChild, this.figure);
    this.svg.addEventListener("mousemove", this.point.bind(this));
    this.svg.addEventListener("mouseleave", this.point.bind(this, null));
  }

  Graph.prototype.load = function () {
    var self = this, step = Math.max(1, seconds / POINTS);
    var end = Math.floor(Date.now() / 1000 / step) * step, start = end - (POINTS - 1) * step;
    var rate = Math.max(4 * scrapeSeconds, step);
    return Promise.all(this.panel.queries.map(function (query) {
      return ask("query_range", { query: put(query.expr, rate), start: start, end: end, step: step });
    })).then(function (answers) {
      var lines = [];
      answers.forEach(function (answer, index) {
        var query = self.panel.queries[index];
        answer.result.forEach(function (found) {
          var look = lookOf(query, found.metric, lines.length);
          lines.push({ name: nameOf(query.name, found.metric), host: found.metric.instance, colour: look.colour, dash: look.dash, values: onGrid(found.values, start, step, POINTS) });
        });
      });
      lines.forEach(function (line) {
        line.twice = lines.some(function (other) { return other !== line && other.name === line.name; });
      });
      self.draw(lines, start, step);
    }).catch(function (error) {
      self.say(error.message);
    });
  };

  Graph.prototype.say = function (words) {
    this.lines = [];
    this.svg.replaceChildren(node("text", { x: "50%", y: "50%", "text-anchor": "middle" }, words));
    this.legend.replaceChildren();
    this.figure.dataset.lines = "0";
  };

  Graph.prototype.draw = function (lines, start, step) {
    lines = lines.filter(function (line) { return line.values.some(function (value) { return value !== HIDE; }); });
    if (!lines.length) { this.say("no data"); return; }
    var width = this.svg.clientWidth || 600, height = this.svg.clientHeight || 190;
    var left = 58, bottom = 18, unit = this.panel.unit;
    var layers = this.panel.stacked ? stack(lines.map(function (line) { return line.values; })) : null;
    var most = 0;
    lines.forEach(function (line, index) {
      (layers ? layers[index].high : line.values).forEach(function (value) { if (value !== HIDE) { most = Math.max(most, value); } });
    });
    var marks = ticks(most, unit), top = marks[marks.length - 1];
    var x = function (at) { return left + at / (POINTS - 1) * (width - left - 4); };
    var y = function (value) { return height - bottom - value / top * (height - bottom - 6); };
    var made = [];
    marks.forEach(function (mark) {
      made.push(node("line", { "class": "grid", x1: left, x2: width - 4, y1: y(mark), y2: y(mark) }));
      made.push(node("text", { x: left - 6, y: y(mark) + 4, "text-anchor": "end" }, show(mark, unit)));
    });
    moments(start, (POINTS - 1) * step, (width - left) / 80).forEach(function (moment) {
      var place = x((moment - start) / step), anchor = place < left + 30 ? "start" : place > width - 30 ? "end" : "middle";
      made.push(node("text", { x: place, y: height - 3, "text-anchor": anchor }, clock(moment)));
    });
    lines.forEach(function (line, index) {
      if (layers) {
        made.push(node("path", { "class": "data", d: area(layers[index], x, y), fill: line.colour, "fill-opacity": 0.8, stroke: line.colour, "stroke-width": 0.5 }));
      } else {
        made.push(node("path", { "class": "data", d: path(line.values, x, y), fill: "none", stroke: line.colour, "stroke-width": 1.8, "stroke-linejoin": "round", "stroke-linecap": "round", "stroke-dasharray": line.dash || "none" }));
      }
    });
    this.cursor = node("line", { "class": "cursor", y1: 6, y2: height - bottom });
    made.push(this.cursor);
    this.lines = lines;
    this.place = { left: left, width: width, start: start, step: step };
    this.svg.replaceChildren.apply(this.svg, made);
    this.figure.dataset.lines = String(lines.length);
    this.tell(POINTS - 1);
  };

  // The legend with the values of one moment, or the last ones before it.
  Graph.prototype.tell = function (at) {
    var unit = this.panel.unit;
    this.legend.replaceChildren.apply(this.legend, this.lines.map(function (line) {
      var last = at;
      while (last > 0 && line.values[last] === HIDE && at - last < 6) { last -= 1; }
      var item = html("span"), mark = html("i", line.dash ? "dashed" : "");
      mark.style.color = line.colour;
      item.append(mark, line.name + (line.twice ? " on " + line.host : "") + " ", html("b", "", show(line.values[last], unit)));
      return item;
    }));
  };

  Graph.prototype.point = function (event) {
    if (!this.lines || !this.lines.length) { return; }
    if (!event) {
      this.cursor.style.visibility = "hidden";
      this.tell(POINTS - 1);
      return;
    }
    var place = this.place, inside = event.clientX - this.svg.getBoundingClientRect().left;
    var at = Math.round((inside - place.left) / (place.width - place.left - 4) * (POINTS - 1));
    at = Math.max(0, Math.min(POINTS - 1, at));
    var x = place.left + at / (POINTS - 1) * (place.width - place.left - 4);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    this.cursor.style.visibility = "visible";
    this.tell(at);
  };

  // What an alert says of itself is known to the interface alone, not to the page's template.
  function explain() {
    return ask("alerts", {}).then(function (found) {
      document.querySelectorAll("#wrong li[data-alert]").forEach(function (item) {
        var alert = found.alerts.find(function (each) {
          var labels = each.labels, of = labels.disk || labels.guest || labels.room || "";
          return labels.alertname === item.dataset.alert && of === item.dataset.of && (labels.instance || "") === item.dataset.instance;
        });
        if (alert && alert.annotations.summary) { item.querySelector("span").textContent = alert.annotations.summary; }
      });
    }).catch(function () {});
  }

  // The upper half anew, as Prometheus makes it.
  function renew() {
    return fetch(location.href).then(function (answer) { return answer.text(); }).then(function (text) {
      var fresh = new DOMParser().parseFromString(text, "text/html").getElementById("now");
      if (fresh) { document.getElementById("now").replaceWith(fresh); }
      return explain();
    }).catch(function () {});
  }

  function findScrapeInterval() {
    return ask("targets", { state: "active" }).then(function (found) {
      var intervals = found.activeTargets.map(function (target) { return parseFloat(duration(target.scrapeInterval)); });
      scrapeSeconds = Math.min(300, Math.max.apply(null, intervals.concat([1])));
    }).catch(function () {});
  }

  function findDisks() {
    return ask("label/disk/values", { "match[]": "swaptide_disk_size_bytes" }).then(function (found) { disks = found; }).catch(function () {});
  }

  function duration(text) {
    var units = { ms: 0.001, s: 1, m: 60, h: 3600 }, total = 0;
    String(text).replace(/([0-9.]+)(ms|s|m|h)/g, function (all, number, unit) { total += Number(number) * units[unit]; return ""; });
    return total || 15;
  }

  function ranges() {
    RANGES.forEach(function (each) {
      var wanted = new URLSearchParams(location.search), link = html("a", each[1] === seconds ? "on" : "", each[0]);
      wanted.set("range", each[0]);
      link.href = "?" + wanted;
      document.getElementById("ranges").appendChild(link);
    });
  }

  function main() {
    var graphs = SHOWN.panels.map(function (panel) { return new Graph(panel); });
    graphs.forEach(function (graph) { document.getElementById("graphs").appendChild(graph.figure); });
    function load() {
      return graphs.reduce(function (before, graph) { return before.then(function () { return graph.load(); }); }, findDisks());
    }
    function again() {
      setTimeout(function () {
        (document.hidden ? Promise.resolve() : renew().then(load)).then(again);
      }, REFRESH_SECONDS * 1000);
    }
    ranges();
    explain();
    findScrapeInterval().then(load).then(again);
    window.addEventListener("resize", load);
  }

  main();
})();
