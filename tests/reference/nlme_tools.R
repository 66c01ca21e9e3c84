# Makes nlme_tools.json: predictions along a covariate, intervals of variances and residuals of regressions by group, by nlme.
# Run in this folder: Rscript nlme_tools.R
suppressMessages({library(nlme);library(jsonlite)})
d <- read.csv("data/orthodont.csv", colClasses=c(Subject="factor",Sex="factor"))
d$weight <- round(20 + 3 * (d$age - 8) + (seq_len(nrow(d)) * 7 %% 11) / 3, 2)
ctl <- lmeControl(msTol=1e-12, tolerance=1e-12, opt="optim", msMaxIter=1000, maxIter=1000)
g <- groupedData(distance ~ age | Subject, d)
m <- lme(distance ~ age * Sex + weight, random = ~ age | Subject, data=g, control=ctl)
a <- augPred(m, primary=~age, length.out=3, level=0:1)
a <- as.data.frame(a); a <- a[a$.type != "original",]
i <- intervals(m)
l <- lmList(distance ~ age | Subject, d)
re <- i$reStruct$Subject
out <- list(formula="distance ~ age * Sex + weight + (age | Subject)", weight=d$weight,
  along=data.frame(Subject=as.character(a$.groups), age=a$age, type=as.character(a$.type), value=a$distance),
  reml=-2*as.numeric(logLik(m)),
  intervals=data.frame(term=c(rownames(re), "sigma"), lower=c(re$lower, i$sigma[["lower"]]), est=c(re$est., i$sigma[["est."]]), upper=c(re$upper, i$sigma[["upper"]])),
  within=as.numeric(unsplit(lapply(split(d, d$Subject), function(s) resid(lm(distance ~ age, s))), d$Subject)),
  software=paste0("R ", getRversion(), ", nlme ", packageVersion("nlme")))
writeLines(toJSON(out, digits=15, auto_unbox=TRUE, pretty=FALSE, dataframe="columns"), "nlme_tools.json")
print(out$intervals); print(head(out$along,8)); print(out$reml)
