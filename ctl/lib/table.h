// SPDX-License-Identifier: GPL-2.0-or-later
//
// A table for people: columns as wide as their widest cell, two spaces apart, no lines, no trailing blanks.
#pragma once

#include <string>
#include <vector>

namespace lockstep {

class Table {
public:
	explicit Table(std::vector<std::string> head) { rows_.push_back(std::move(head)); }

	void right(size_t column) { right_.push_back(column); }         // aligns this column to the right
	void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
	bool empty() const { return rows_.size() == 1; }
	std::string text() const;                                       // lines, each ended by a line break

private:
	std::vector<std::vector<std::string>> rows_;
	std::vector<size_t> right_;
};

}    // namespace lockstep
