// SPDX-License-Identifier: GPL-2.0-or-later
//
// A progress bar, on a terminal only: one line that is drawn over again, and gone when the work is done.
#pragma once

#include "lockstep/cli.h"

namespace lockstep::cli {

class Progress {
public:
	Progress(Context &context, std::string title) : context_(context), title_(std::move(title)) {}
	~Progress() { end(); }
	Progress(const Progress &) = delete;
	Progress &operator=(const Progress &) = delete;

	void show(double part, const std::string &rest);    // part: 0 .. 1
	void end();

private:
	Context &context_;
	std::string title_;
	bool shown_ = false;
};

}    // namespace lockstep::cli
